"""Many connections in one thread, each a generator that says what it waits for.

Used by both ends of the measurement, because it costs less than asyncio, and neither may
be the limit. Decides nothing.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
Steps = Generator[int, None, None]
"""Yields READ or WRITE, and is resumed when its socket is ready for that."""

_SHORT = 0.1
"""Seconds; epoll waits for whole milliseconds, so that what is due would come late."""


class HasFileno(Protocol):
    def fileno(self) -> int: ...


@dataclass(slots=True)
class _Running:
    steps: Steps
    ended: Callable[[Exception | None], None]
    waits_for: int = READ


class Loop:
    """Resumes steps when their sockets are ready."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._running: dict[int, _Running] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self, sock: HasFileno, steps: Steps, ended: Callable[[Exception | None], None]) -> None:
        """Run `steps` to their first wait now; when they end, `ended` is told why, and may close `sock`."""
        fd = sock.fileno()
        self._poll.register(fd, READ)
        self._running[fd] = _Running(steps, ended)
        self._resume(fd)

    def turn(self, seconds: float) -> bool:
        """Wait so long for something to happen; whether it did."""
        if 0 < seconds < _SHORT:
            select.select((self._poll,), (), (), seconds)
            seconds = 0
        events = self._poll.poll(seconds)
        for fd, _ in events:
            self._resume(fd)
        return bool(events)

    def _resume(self, fd: int) -> None:
        running = self._running[fd]
        try:
            wanted = next(running.steps)
        except StopIteration:
            self._end(fd, None)
        except (OSError, ValueError) as error:
            self._end(fd, error)
        else:
            if wanted != running.waits_for:
                self._poll.modify(fd, wanted)
                running.waits_for = wanted

    def _end(self, fd: int, error: Exception | None) -> None:
        running = self._running.pop(fd)
        self._poll.unregister(fd)
        running.ended(error)
