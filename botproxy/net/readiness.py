"""Waiting for a bare socket to become readable or writable, up to a deadline.

Used before a socket is a stream: while a connection is being made or a PROXY
header awaited. It moves no bytes and does not own the socket.
"""

from __future__ import annotations

import asyncio
import socket
from math import inf

from botproxy.net.deadlines import Deadlines


class Readiness:
    """Readiness of `sock`; use as a context manager, so that nothing stays registered.

    The registration for reading is kept between waits, because each change of it is a system call.
    """

    def __init__(
        self, sock: socket.socket, loop: asyncio.AbstractEventLoop, deadlines: Deadlines, deadline: float
    ) -> None:
        self._loop = loop
        self._poller = deadlines.poller
        self._deadlines = deadlines
        self._deadline = deadline
        self._fd = sock.fileno()
        self._waiter: asyncio.Future[None] | None = None
        self._reading = False
        self._writing = False

    def __enter__(self) -> Readiness:
        self._deadlines.watch(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._deadlines.forget(self)
        self._remove_reader()
        self._remove_writer()

    async def readable(self) -> None:
        """Raises TimeoutError at the deadline."""
        if not self._reading:
            self._reading = True
            self._poller.add_reader(self._fd, self._wake_reader)
        await self._wait()

    async def writable(self) -> None:
        """Raises TimeoutError at the deadline."""
        self._remove_reader()
        self._writing = True
        self._poller.add_writer(self._fd, self._wake_writer)
        await self._wait()

    def check(self, now: float) -> None:
        """Called by the sweep."""
        if now >= self._deadline and self._waiter is not None and not self._waiter.done():
            self._deadline = inf
            self._waiter.set_exception(TimeoutError())

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake_reader(self) -> None:
        if not self._wake():
            self._remove_reader()

    def _wake_writer(self) -> None:
        self._remove_writer()
        self._wake()

    def _wake(self) -> bool:
        if self._waiter is None or self._waiter.done():
            return False
        self._waiter.set_result(None)
        return True

    def _remove_reader(self) -> None:
        if self._reading:
            self._reading = False
            self._poller.remove_reader(self._fd, self._wake_reader)

    def _remove_writer(self) -> None:
        if self._writing:
            self._writing = False
            self._poller.remove_writer(self._fd, self._wake_writer)
