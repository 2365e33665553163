"""The waiting room of a bot that does not accept connections.

A bot that restarts is away for seconds. Nothing of a request was sent yet, so it
may wait here, first come, first served, until a connection is made or its
patience ends. One of those waiting tries; the others wait for their turn, so
that a crowd does not beat on a closed door. When the door opens, all pass.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from botproxy import errors
from botproxy.net.stream import SocketStream

RETRY_EVERY = 0.1
"""Seconds between two attempts."""


class Dials(Protocol):
    """Something that makes connections; raises errors.ConnectFailed."""

    async def dial(self) -> SocketStream: ...


class Hold:
    """Connections to one upstream, waited for."""

    def __init__(self, dialer: Dials, patience: float, capacity: int) -> None:
        """`patience`: seconds one request waits, 0 for not at all; `capacity`: how many may wait."""
        self._dialer = dialer
        self._patience = patience
        self._capacity = capacity
        self._turn = asyncio.Lock()
        self._next_attempt = 0.0
        self.waiting = 0

    async def connect(self) -> SocketStream:
        """A connection, at once or after waiting.

        Raises ConnectFailed when patience ends, WaitingRoomFull, ConnectTimeout, UpstreamTlsFailed.
        """
        try:
            return await self._dialer.dial()
        except errors.ConnectFailed:
            if not self._patience:
                raise
        if self.waiting >= self._capacity:
            raise errors.WaitingRoomFull
        self.waiting += 1
        try:
            return await self._wait()
        finally:
            self.waiting -= 1

    async def _wait(self) -> SocketStream:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        try:
            async with asyncio.timeout_at(deadline), self._turn:
                while True:
                    await asyncio.sleep(self._next_attempt - loop.time())
                    try:
                        stream = await self._dialer.dial()
                        self._next_attempt = 0.0
                        return stream
                    except errors.ConnectFailed:
                        self._next_attempt = loop.time() + RETRY_EVERY
        except TimeoutError:
            raise errors.ConnectFailed("it did not come back in time") from None
