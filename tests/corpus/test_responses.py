"""The response side of the corpus: a bot that sends anything at all, in three segmentations."""

from __future__ import annotations

import asyncio

import pytest

from tests.corpus.cases import load
from tests.corpus.responses import Answered, judge, play_all

SERVED: set[str] = set()
"""Entries that we pass on although refusal would be the corpus's choice."""

DECIDED = {
    "r-205-body": True,  # its framing is clear
    "r-ctl-reason": False,
    "r-lf-head": False,
    "r-status-999": True,  # what a status means is between bot and client
}
"""Entries where the corpus has no choice: whether they are passed on."""


@pytest.fixture(scope="module")
def played() -> list[Answered]:
    return asyncio.run(play_all())


def test_no_entry_is_violated(played: list[Answered], capsys: pytest.CaptureFixture[str]) -> None:
    violations = judge(played)
    with capsys.disabled():
        cases = {answered.script.case.name for answered in played}
        print(f"\ncorpus: {len(cases)} responses x {len(played) // len(cases)} segmentations, ", end="")
        print(f"{len(violations)} violations")
    assert not violations


def _served(played: list[Answered], prefer: str | None) -> dict[str, bool]:
    names = {case.name for case in load("response") if case.expect == "either" and case.prefer == prefer}
    return {each.script.case.name: each.served for each in played if each.script.case.name in names}


def test_what_the_corpus_would_refuse_is_refused_unless_there_is_a_reason(played: list[Answered]) -> None:
    served = _served(played, "reject")
    assert served
    assert {name for name, passed in served.items() if passed} == SERVED


def test_where_the_corpus_has_no_choice_ours_is_known(played: list[Answered]) -> None:
    assert _served(played, None) == DECIDED
