"""Every stage whose cost is watched does what it is named for."""

from __future__ import annotations

from typing import Any

import pytest

from bench.micro.stages import BODY, exchange, others, stages


@pytest.mark.parametrize("name", list(stages()))
def test_a_stage_can_be_repeated(name):
    stage = stages()[name]
    stage()
    stage()


def test_heads_and_routes_are_the_ones_of_the_exchange():
    found: dict[str, Any] = {name: stage() for name, stage in exchange().items()}
    assert found["request head"].target == b"/telegram"
    assert found["route"].upstream == "bot"
    assert b"X-Forwarded-For: 149.154.167.197\r\n" in found["request fields"]
    assert found["response head"].status == 200
    assert b"Cache-Control: no-store\r\n" in found["response fields"]
    assert b'"status":200' in found["access line"]


def test_a_chunked_body_comes_back_whole():
    assert others()["chunked body in"]() == (BODY, b"")
