"""One timer for all waits of a process.

Whatever has a deadline is watched here and asked a few times a second whether
its time is up. A deadline is therefore kept to within `SWEEP` seconds, which is
what timeouts of seconds need, and costs nothing per request.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

SWEEP = 0.2
"""Seconds between two looks; the largest error of a deadline."""


class Timed(Protocol):
    """Something with deadlines of its own."""

    def check(self, now: float) -> None:
        """End what should have ended by `now` (loop time)."""


class Deadlines:
    """The sweep over everything watched."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: set[Timed] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, timed: Timed) -> None:
        """Look after `timed` until `forget`."""
        self._watched.add(timed)
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP, self._sweep)

    def forget(self, timed: Timed) -> None:
        self._watched.discard(timed)

    def _sweep(self) -> None:
        # Armed before anything is asked, so that one failure does not end all deadlines.
        self._timer = self._loop.call_later(SWEEP, self._sweep) if self._watched else None
        now = self._loop.time()
        for timed in tuple(self._watched):
            timed.check(now)
