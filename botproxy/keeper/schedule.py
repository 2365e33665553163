"""When the certificate files are looked at next, and why.

Events are given time to end, for programs write several files; whoever asks is served at
once; files that were not whole have a time of their own; and now and then time itself is
the reason. All times are monotonic seconds and arguments: nothing here waits.

Before: `keeper.watch`, `keeper.answers`. After: `keeper.renewal`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Literal

Trigger = Literal["event", "poll", "retry", "signal", "command", "rollback", "start"]
QUIET = 0.3
"""Seconds without a further event until the files are looked at; the watch itself takes up to 0.2 more."""
LONGEST_QUIET = 5.0
"""Seconds from the first event on, however many follow."""
TICK = 10.0
"""Seconds between two looks at expiry, alarms and what could not be written."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one certificate when it was looked at."""

    name: str
    outcome: Literal["unchanged", "active", "unverified", "rejected", "rolled_back", "failed"]
    generation: int
    """The one that is served now; 0 when it could not be kept."""
    rule: str = ""
    says: str = ""
    hint: str = ""


@dataclass(slots=True)
class Order:
    """A reason to look."""

    trigger: Trigger
    since: float
    """When it came."""
    names: frozenset[str] | None = None
    """None: all certificates."""
    force: bool = False
    to: int | None = None
    """Of a rollback: the generation; None: the one before."""
    done: asyncio.Future[list[Change]] | None = None
    """For whoever asked and waits."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds for each step, for the audit."""


class Schedule:
    """Reasons to look, in the order in which they count."""

    def __init__(self) -> None:
        self._orders: deque[Order] = deque()
        self._first_event: float | None = None
        self._last_event = 0.0
        self._tick_at = 0.0

    def event(self, now: float) -> None:
        """The kernel told of a change."""
        self._last_event = now
        if self._first_event is None:
            self._first_event = now

    def add(self, order: Order) -> None:
        """A reason that does not wait; a second one of the same kind that nobody waits for adds nothing."""
        if order.done is None and any(o.trigger == order.trigger and o.done is None for o in self._orders):
            return
        self._orders.append(order)

    def ticked(self, now: float) -> None:
        """Expiry and alarms have just been looked at."""
        self._tick_at = now + TICK

    def next(self, now: float, looks: Iterable[float]) -> Order | float | None:
        """The order that is due; None when only time has passed; else when to ask again.

        `looks`: when files that were not whole, or rolled back, shall be looked at.
        """
        if self._orders:
            return self._orders.popleft()
        quiet_at = inf
        if self._first_event is not None:
            quiet_at = min(self._last_event + QUIET, self._first_event + LONGEST_QUIET)
            if now >= quiet_at:
                order = Order("event", self._first_event)
                self._first_event = None
                return order
        look_at = min(looks, default=inf)
        if now >= look_at:
            return Order("retry", now)
        if now >= self._tick_at:
            return None
        return min(quiet_at, look_at, self._tick_at)
