"""How every process does, where the others can see it: a beat each second from its event loop.

Kept in anonymous shared memory made before the fork, a row for each seat. A process that
hangs, in a loop of its own or in a call that does not return, does not beat, whatever its
threads do. What follows from silence is the supervisor's decision; what lag and memory
are is shown by the keeper.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

BEAT = 1.0
"""Seconds between two beats."""
FADING = 0.9
"""What is left of a lag one beat later."""
_CELLS = 4


@dataclass(frozen=True, slots=True)
class Vital:
    """How one process does."""

    lag: float
    """Seconds by which its event loop was late, lately."""
    memory: int
    """Bytes that it has in memory."""


class Vitals:
    """The rows of all seats."""

    def __init__(self, seats: int) -> None:
        self._seats = range(seats)
        self._cells = memoryview(mmap.mmap(-1, seats * _CELLS * 8)).cast("d")

    def last_beat(self, seat: int) -> float:
        """Monotonic seconds; 0 before the first."""
        return self._cells[seat * _CELLS]

    def of(self, pid: int) -> Vital | None:
        """How process `pid` does; None before its first beat."""
        for at in (seat * _CELLS for seat in self._seats):
            if self._cells[at + 3] == pid:
                return Vital(self._cells[at + 1], int(self._cells[at + 2]))
        return None

    def write(self, seat: int, beat: float, lag: float, memory: int, pid: int) -> None:
        at = seat * _CELLS
        self._cells[at], self._cells[at + 1] = beat, lag
        self._cells[at + 2], self._cells[at + 3] = float(memory), float(pid)

    def forget(self, seat: int) -> None:
        """Who was in `seat` has ended."""
        self.write(seat, 0.0, 0.0, 0, 0)


class Pulse:
    """The beats of one process, from the loop that does its work."""

    def __init__(self, vitals: Vitals, seat: int) -> None:
        self.vitals = vitals
        self._seat = seat
        self._page = os.sysconf("SC_PAGE_SIZE")

    def start(self, loop: asyncio.AbstractEventLoop, look: Callable[[int], None] | None = None) -> None:
        """Beat from now on; `look` is called with the memory of each beat, in bytes."""
        # Opened once: a process without a descriptor left shall not look dead.
        self._statm = open("/proc/self/statm", "rb", buffering=0)  # noqa: SIM115 as long as the process
        self._loop = loop
        self._lag = 0.0
        self._look = look
        self._due = time.monotonic()
        self._beat()

    def _lateness(self, now: float) -> float:
        """The worst of late: it fades, so that whoever looks seldom still sees it."""
        self._lag = max(now - self._due, self._lag * FADING)
        return self._lag

    def _beat(self) -> None:
        now = time.monotonic()
        memory = int(os.pread(self._statm.fileno(), 128, 0).split()[1]) * self._page
        self.vitals.write(self._seat, now, self._lateness(now), memory, os.getpid())
        self._due = now + BEAT
        self._loop.call_later(BEAT, self._beat)
        if self._look is not None:
            self._look(memory)
