"""When the files are looked at: once they are quiet, soon when asked, in the end by the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from botproxy.keeper.schedule import LONGEST_QUIET, QUIET, TICK, Order, Schedule, Trigger


@pytest.fixture
def schedule() -> Schedule:
    """One whose next tick is at `TICK`."""
    made = Schedule()
    made.ticked(0.0)
    return made


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def next_trigger(schedule: Schedule, now: float, *looks: float) -> Trigger:
    order = schedule.next(now, looks)
    assert isinstance(order, Order)
    return order.trigger


def test_files_are_looked_at_when_they_have_been_quiet_for_a_while(schedule: Schedule):
    schedule.event(1.0)
    assert schedule.next(1.0, ()) == 1.0 + QUIET
    schedule.event(1.2)
    assert schedule.next(1.0 + QUIET, ()) == 1.2 + QUIET
    assert schedule.next(1.2 + QUIET, ()) == Order("event", 1.0)
    assert schedule.next(1.2 + QUIET, ()) == TICK


def test_files_that_are_never_quiet_are_looked_at_all_the_same(schedule: Schedule):
    moments = [1.0 + number * 0.25 for number in range(int(LONGEST_QUIET / 0.25) + 1)]
    for moment in moments[:-1]:
        schedule.event(moment)
        assert isinstance(schedule.next(moment, ()), float)
    assert schedule.next(moments[-2], ()) == moments[-1] == 1.0 + LONGEST_QUIET
    assert schedule.next(moments[-1], ()) == Order("event", 1.0)
    schedule.event(8.0)
    assert schedule.next(8.0, ()) == 8.0 + QUIET


def test_files_that_were_not_whole_are_looked_at_in_their_own_time(schedule: Schedule):
    assert schedule.next(1.0, (3.0, 2.0)) == 2.0
    assert schedule.next(2.0, (3.0, 2.0)) == Order("retry", 2.0)


def test_now_and_then_only_time_has_passed(schedule: Schedule):
    assert Schedule().next(0.0, ()) is None
    assert schedule.next(TICK - 1, ()) == TICK
    for _ in range(2):
        assert schedule.next(TICK, ()) is None
    schedule.ticked(TICK + 0.5)
    assert schedule.next(TICK + 0.5, ()) == 2 * TICK + 0.5


def test_the_next_moment_is_the_nearest(schedule: Schedule):
    schedule.event(9.0)
    assert schedule.next(9.0, (20.0,)) == 9.0 + QUIET
    assert schedule.next(9.0, (9.1,)) == 9.1
    schedule.event(9.9)
    assert schedule.next(9.9, (20.0,)) == TICK


def test_who_asks_comes_first_then_what_moved_then_what_was_not_whole_then_the_clock(schedule: Schedule):
    now = 100.0
    schedule.event(1.0)
    schedule.add(Order("poll", 50.0))
    schedule.add(Order("signal", 2.0))
    assert [next_trigger(schedule, now, 3.0) for _ in range(4)] == ["poll", "signal", "event", "retry"]
    assert schedule.next(now, ()) is None


def test_a_second_order_of_a_kind_adds_nothing_until_the_first_is_taken(schedule: Schedule):
    first = Order("poll", 1.0)
    schedule.add(first)
    schedule.add(Order("poll", 2.0))
    assert schedule.next(3.0, ()) is first
    assert schedule.next(3.0, ()) == TICK
    schedule.add(Order("poll", 4.0))
    assert next_trigger(schedule, 5.0) == "poll"


def test_nobody_who_waits_for_an_answer_is_forgotten(schedule: Schedule, loop: asyncio.AbstractEventLoop):
    orders = [Order("command", 1.0, done=loop.create_future()) for _ in range(2)]
    orders.append(Order("command", 1.0))
    orders.append(Order("command", 1.0, done=loop.create_future()))
    for order in orders:
        schedule.add(order)
    assert [schedule.next(2.0, ()) for _ in orders] == orders
