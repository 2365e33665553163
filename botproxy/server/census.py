"""Counts that all workers share: connections, and tokens of the rate limits.

Kept in anonymous shared memory made before the fork, so that a limit holds for
the program and not for each worker. Every worker has a seat, a row that only it
writes and that is free again when it ended: one that takes over sits beside the one
that drains. Addresses are hashed into buckets with this run's random seed; two
addresses share one with probability 1/65536. Tokens are written by all without a
lock: a lost race admits one request too many, never one too few for ever.
"""

from __future__ import annotations

import bisect
import math
import mmap
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from botproxy import errors
from botproxy.policy.limits import address_key, admit

if TYPE_CHECKING:
    from botproxy.config.schema import RateLimit

BUCKETS = 65536
_ROW = BUCKETS + 1


class Seats:
    """The rows of the counts, one for each worker that lives; the supervisor gives them out."""

    def __init__(self, most: int) -> None:
        self._free = list(range(most))
        self._used = memoryview(mmap.mmap(-1, 4)).cast("I")
        # One more than the buckets: the last cell of a row counts all connections of its worker.
        self.counts = memoryview(mmap.mmap(-1, most * _ROW * 4)).cast("I")

    @property
    def used(self) -> int:
        """Rows from the first on that may hold something."""
        return self._used[0]

    def take(self) -> int | None:
        """The lowest seat that is free; None when there is none."""
        if not self._free:
            return None
        seat = self._free.pop(0)
        self._used[0] = max(self._used[0], seat + 1)
        return seat

    def leave(self, seat: int) -> None:
        """Whoever sat there has ended, and its connections are gone."""
        self.counts[seat * _ROW : (seat + 1) * _ROW] = memoryview(bytes(_ROW * 4)).cast("I")
        bisect.insort(self._free, seat)


class Census:
    """How many connections are open, in all workers and for each address."""

    def __init__(self, seats: Seats, total: int, per_address: int) -> None:
        self._seats = seats
        self._counts = seats.counts
        self._total = total
        self._per_address = per_address

    def enter(self, seat: int, address: str, *, exempt: bool = False) -> bool:
        """Count a connection of the worker in `seat` unless a limit forbids it. `exempt`: a trusted proxy."""
        if self._sum(BUCKETS) >= self._total:
            return False
        if not exempt:
            bucket = _bucket(address)
            if self._sum(bucket) >= self._per_address:
                return False
            self._counts[seat * _ROW + bucket] += 1
        self._counts[seat * _ROW + BUCKETS] += 1
        return True

    def leave(self, seat: int, address: str, *, exempt: bool = False) -> None:
        """Take back what `enter` counted."""
        self._counts[seat * _ROW + BUCKETS] -= 1
        if not exempt:
            self._counts[seat * _ROW + _bucket(address)] -= 1

    def open(self) -> int:
        """Connections open now, in all workers."""
        return self._sum(BUCKETS)

    def _sum(self, cell: int) -> int:
        return sum(self._counts[cell : self._seats.used * _ROW : _ROW])


class SharedLimiter:
    """The rate limits of the whole program and of each route."""

    def __init__(self, overall: RateLimit, routes: Sequence[RateLimit]) -> None:
        everybody = [(_Rule(overall), errors.RateLimited)] if _is_on(overall) else []
        self._rules = [
            (*everybody, *([(_Rule(limit), errors.RouteRateLimited)] if _is_on(limit) else ()))
            for limit in routes
        ]
        """Of each route, and what refuses."""

    def admit(self, address: str, route: int) -> None:
        """Count a request for the route with this index in the configuration.

        Raises RateLimited, RouteRateLimited with the seconds after which another may come.
        """
        for rule, refusal in self._rules[route]:
            if (wait := rule.admit(address, time.monotonic())) is not None:
                raise refusal(retry_after=max(1, math.ceil(wait)))


class _Rule:
    """One rate limit: a cell for everybody, and a bucket for each address."""

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self._cells = memoryview(mmap.mmap(-1, (BUCKETS + 1) * 8)).cast("d")

    def admit(self, address: str, now: float) -> float | None:
        limit = self._limit
        if limit.per_address is not None:
            wait = self._spend(_bucket(address), now, limit.per_address, limit.burst)
            if wait is not None:
                return wait
        return None if limit.total is None else self._spend(BUCKETS, now, limit.total, limit.burst)

    def _spend(self, cell: int, now: float, rate: float, burst: int) -> float | None:
        self._cells[cell], wait = admit(self._cells[cell], now, rate, burst)
        return wait


def _is_on(limit: RateLimit) -> bool:
    return limit.total is not None or limit.per_address is not None


@lru_cache(maxsize=1024)
def _bucket(address: str) -> int:
    return hash(address_key(address)) % BUCKETS
