"""Everything whose cost is watched in a whole botproxy is what it is named for."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from bench.micro.served import WORKS, Caller, place
from tests.harness import eventually


@pytest.fixture(scope="module")
def caller() -> Iterator[Caller]:
    with place() as here:
        process = subprocess.Popen(here.command, stdout=subprocess.DEVNULL)
        try:
            eventually(here.caller.is_answered)
            yield here.caller
        finally:
            process.terminate()
            process.wait(20)


@pytest.mark.parametrize("name", list(WORKS))
def test_a_work_can_be_done_again_and_again(name, caller):
    do, _ = WORKS[name]
    do(caller, 1)
    do(caller, 3)
