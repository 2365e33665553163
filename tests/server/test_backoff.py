"""When something that ended is started again."""

from __future__ import annotations

from itertools import pairwise

from botproxy.server.backoff import FIRST, LONGEST, STABLE_AFTER, Backoff


def test_each_time_later_and_never_later_than_half_a_minute() -> None:
    backoff = Backoff()
    delays = [backoff.plan(0, 0.0, lived=0.0) for _ in range(12)]
    assert (delays[0], delays[-1]) == (FIRST, LONGEST)
    assert all(after == min(2 * before, LONGEST) for before, after in pairwise(delays))


def test_what_was_stable_begins_anew() -> None:
    backoff = Backoff()
    for _ in range(5):
        backoff.plan(0, 0.0, lived=0.0)
    assert backoff.failures(0) == 5
    assert backoff.plan(0, 0.0, lived=STABLE_AFTER) == FIRST
    assert backoff.failures(0) == 1
    backoff.plan(0, 0.0, lived=STABLE_AFTER - 0.01)
    assert backoff.failures(0) == 2


def test_each_is_planned_for_itself_and_due_once() -> None:
    backoff = Backoff()
    backoff.plan(1, 100.0, lived=0.0)
    backoff.plan(2, 100.0, lived=0.0)
    backoff.plan(2, 100.0, lived=0.0)
    assert backoff.due(100.0) == []
    assert backoff.due(100.0 + FIRST) == [1]
    assert backoff.due(100.0 + 10 * FIRST) == [2]
    assert backoff.due(1000.0) == []
    assert backoff.failures(1) == 1  # being started is not being stable


def test_what_is_forgotten_is_not_started() -> None:
    backoff = Backoff()
    backoff.plan(1, 0.0, lived=0.0)
    backoff.plan(1, 0.0, lived=0.0)
    backoff.forget(1)
    backoff.forget(2)
    assert (backoff.due(1000.0), backoff.failures(1)) == ([], 0)
    assert backoff.plan(1, 0.0, lived=0.0) == FIRST
