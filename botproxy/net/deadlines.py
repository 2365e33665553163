"""One timer for all waits of a process.

Whatever has a deadline is watched here and asked a few times a second whether
its time is up. A deadline is therefore kept to within `SWEEP` seconds, which is
what timeouts of seconds need, and costs nothing per request. Nobody's time is up
because the process itself stood still.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from botproxy.net.poller import poller_of

SWEEP = 0.2
"""Seconds between two looks; the largest error of a deadline."""


class Timed(Protocol):
    """Something with deadlines of its own."""

    def check(self, now: float) -> None:
        """End what should have ended by `now` (loop time)."""


class Deadlines:
    """The sweep over everything watched."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.poller = poller_of(loop)
        """Of the same loop, at hand for whatever is watched: each new stream asks for it. Made now, because
        later there may be no descriptor left for it."""
        self._loop = loop
        self._watched: set[Timed] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._excused = False

    def watch(self, timed: Timed) -> None:
        """Look after `timed` until `forget`."""
        self._watched.add(timed)
        if self._timer is None:
            self._arm()

    def _arm(self) -> None:
        self._due = self._loop.time() + SWEEP
        self._timer = self._loop.call_later(SWEEP, self._sweep)

    def forget(self, timed: Timed) -> None:
        self._watched.discard(timed)

    def _sweep(self) -> None:
        # Armed before anything is asked, so that one failure does not end all deadlines.
        now, due = self._loop.time(), self._due
        self._timer = None
        if self._watched:
            self._arm()
        # The process stood still: what has come meanwhile was in time, and is read before the next sweep.
        self._excused = not self._excused and now - due > SWEEP
        if self._excused:
            return
        for timed in tuple(self._watched):
            timed.check(now)
