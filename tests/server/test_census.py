"""Counts shared by all workers."""

from __future__ import annotations

import os

import pytest

from botproxy import errors
from botproxy.config.schema import RateLimit
from botproxy.server.census import Census, Seats, SharedLimiter


def taken(count: int) -> Seats:
    """Seats of which the first `count` are taken."""
    seats = Seats(count)
    assert [seats.take() for _ in range(count)] == list(range(count))
    return seats


def test_the_total_counts_all_workers() -> None:
    census = Census(taken(2), total=3, per_address=10)
    assert census.enter(0, "1.1.1.1")
    assert census.enter(1, "1.1.1.2")
    assert census.enter(1, "1.1.1.3")
    assert not census.enter(0, "1.1.1.4")
    census.leave(1, "1.1.1.2")
    assert census.enter(0, "1.1.1.4")
    assert census.open() == 3


def test_an_address_counts_in_all_workers_and_ipv6_by_64() -> None:
    census = Census(taken(2), total=100, per_address=2)
    assert census.enter(0, "2001:db8::1")
    assert census.enter(1, "2001:db8::ffff")
    assert not census.enter(0, "2001:db8::2")
    assert census.enter(0, "2001:db8:0:1::1")


def test_trusted_proxies_have_no_limit_of_their_own() -> None:
    census = Census(taken(1), total=100, per_address=1)
    assert all(census.enter(0, "10.0.0.1", exempt=True) for _ in range(5))
    census.leave(0, "10.0.0.1", exempt=True)
    assert census.open() == 4


def test_a_worker_that_drains_and_the_one_that_takes_over_count_together() -> None:
    census = Census(taken(3), total=3, per_address=2)
    draining, successor = 0, 2
    assert census.enter(draining, "1.1.1.1")
    assert census.enter(successor, "1.1.1.1")
    assert not census.enter(successor, "1.1.1.1")
    census.leave(draining, "1.1.1.1")
    assert census.enter(successor, "1.1.1.1")
    assert census.open() == 2


def test_what_a_dead_worker_counted_is_forgotten_with_its_seat() -> None:
    seats = taken(2)
    census = Census(seats, total=2, per_address=1)
    assert census.enter(0, "1.1.1.1")
    assert census.enter(1, "1.1.1.2")
    seats.leave(1)
    assert census.open() == 1
    assert census.enter(0, "1.1.1.2")
    assert not census.enter(0, "1.1.1.1")


def test_a_change_of_limits_counts_those_who_were_there_before() -> None:
    seats = taken(2)
    before, after = Census(seats, total=5, per_address=5), Census(seats, total=2, per_address=2)
    assert before.enter(0, "1.1.1.1")
    assert before.enter(0, "1.1.1.2")
    assert not after.enter(1, "1.1.1.3")
    before.leave(0, "1.1.1.2")
    assert after.enter(1, "1.1.1.3")
    assert before.open() == after.open() == 2


def test_a_seat_is_given_to_one_at_a_time_and_the_lowest_first() -> None:
    seats = Seats(2)
    assert (seats.take(), seats.take(), seats.take()) == (0, 1, None)
    seats.leave(1)
    seats.leave(0)
    assert (seats.take(), seats.take(), seats.take()) == (0, 1, None)


def test_another_process_sees_the_same_counts() -> None:
    census = Census(taken(2), total=100, per_address=1)
    pid = os.fork()
    if pid == 0:
        census.enter(1, "1.1.1.1")
        os._exit(0)
    os.waitpid(pid, 0)
    assert not census.enter(0, "1.1.1.1")


def test_each_address_has_its_own_tokens_and_the_route_one_for_all() -> None:
    limiter = SharedLimiter(RateLimit(), [RateLimit(per_address="1/h", total="1/h", burst=2)])
    limiter.admit("1.1.1.1", 0)
    limiter.admit("1.1.1.1", 0)
    with pytest.raises(errors.RouteRateLimited) as caught:
        limiter.admit("1.1.1.1", 0)
    assert caught.value.retry_after is not None
    assert 3500 < caught.value.retry_after <= 3600
    with pytest.raises(errors.RouteRateLimited):
        limiter.admit("1.1.1.2", 0)  # the total of the route is spent


def test_tokens_are_shared_between_processes() -> None:
    limiter = SharedLimiter(RateLimit(per_address="1/h", burst=1), [RateLimit()])
    pid = os.fork()
    if pid == 0:
        limiter.admit("1.1.1.1", 0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with pytest.raises(errors.RateLimited):
        limiter.admit("1.1.1.1", 0)


def test_without_a_rule_nobody_waits() -> None:
    limiter = SharedLimiter(RateLimit(), [RateLimit()])
    for _ in range(1000):
        limiter.admit("1.1.1.1", 0)
