"""After a 101: bytes both ways until both sides have ended.

Knows nothing of WebSocket frames. One side may end before the other (half-close);
silence on both sides together ends the tunnel, and so does a side that no longer
reads. Whoever calls closes the streams.
"""

from __future__ import annotations

import asyncio
from math import inf

from botproxy.net.stream import SocketStream, StreamClosed, StreamTimeout

HALF_OPEN = 30.0
"""Seconds of silence granted to the second side once the first has ended."""


class Tunnel:
    """Two streams, tied together."""

    def __init__(self, client: SocketStream, bot: SocketStream, idle: float) -> None:
        """`idle`: seconds of silence on both sides, 0 for no limit."""
        self._client = client
        self._bot = bot
        self._idle = idle or inf
        self._ended = 0
        self._last = 0.0
        self.bytes_in = 0
        self.bytes_out = 0

    async def run(self) -> bool:
        """Copy until both sides have ended; True when they ended in order, neither cut nor silent."""
        self._last = asyncio.get_running_loop().time()
        copies = {
            asyncio.create_task(self._copy(self._client, self._bot)),
            asyncio.create_task(self._copy(self._bot, self._client)),
        }
        try:
            done, _ = await asyncio.wait(copies, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for copy in copies:
                copy.cancel()
            results = await asyncio.gather(*copies, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(
                result, StreamClosed | StreamTimeout | asyncio.CancelledError
            ):
                raise result
        return len(done) == 2 and not any(copy.exception() for copy in done)

    async def _copy(self, source: SocketStream, sink: SocketStream) -> None:
        while data := await self._read(source):
            if sink is self._bot:
                self.bytes_in += len(data)
            else:
                self.bytes_out += len(data)
            sink.write(data)
            await sink.drain()
        self._ended += 1
        await sink.drain(low=0, high=0)
        sink.send_end()
        sink.set_read_deadline(self._deadline())  # it may have been waiting with the longer patience

    async def _read(self, source: SocketStream) -> bytes:
        """The next bytes; silence counts only when the other side is silent as well."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await source.read(self._deadline())
            except StreamTimeout:
                if loop.time() < self._deadline():
                    continue
                raise
            self._last = loop.time()
            return data

    def _deadline(self) -> float:
        return self._last + (min(self._idle, HALF_OPEN) if self._ended else self._idle)
