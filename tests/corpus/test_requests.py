"""The request side of the corpus against a running botproxy, over TLS, in three segmentations."""

from __future__ import annotations

import pytest

from tests.corpus.cases import Case, load
from tests.corpus.requests import Run, run

FORWARDED: dict[str, str] = {}
"""Entries that we forward although refusal would be the corpus's choice, each with the reason."""

DECIDED = {
    "method-unknown": (1, [200]),  # what a method means is the bot's business
    "target-rfc3986-bad": (1, [200]),  # byte for byte; only what parsers disagree on is refused
    "options-star": (1, [200]),  # never rewritten
    "host10-none": (1, [200]),  # HTTP/1.0 has no Host; the bot gets exactly one, empty
    "expect-get-cl": (1, [200]),  # the body travels as a body
    "up-foo-pipelined": (2, [200, 200]),  # no offer of ours, so two ordinary requests
    "up-ws-pipelined": (2, [200, 200]),  # no 101, so no tunnel
    "up-ws-bad-version": (0, [426]),
    "conn-nominates-auth": (0, [400]),  # removing credentials would change what the bot decides
    "headers-101": (0, [431]),
}
"""Entries where the corpus has no choice: how many requests the bot gets, and what the client is told."""


@pytest.fixture(scope="module")
def result() -> Run:
    return run()


def _either(prefer: str | None) -> list[Case]:
    return [case for case in load("request") if case.expect == "either" and case.prefer == prefer]


def _decision(result: Run, name: str) -> tuple[int, list[int]]:
    outcome = next(job.outcome for job in result.jobs if job.case.name == name)
    return len(outcome.complete), [response.status for response in outcome.responses]


def test_no_entry_is_violated(result: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{result.summary()}")
    assert not result.violations


def test_what_the_corpus_would_refuse_is_refused_unless_there_is_a_reason(result: Run) -> None:
    choices = _either("reject")
    forwarded = {case.name for case in choices if _decision(result, case.name)[0]}
    assert len(choices) >= 20
    assert forwarded == FORWARDED.keys()


def test_what_the_corpus_would_accept_is_accepted(result: Run) -> None:
    choices = _either("accept")
    assert choices
    assert {case.name: _decision(result, case.name) for case in choices} == {
        case.name: (1, [200]) for case in choices
    }


def test_where_the_corpus_has_no_choice_ours_is_known(result: Run) -> None:
    assert {case.name: _decision(result, case.name) for case in _either(None)} == DECIDED
