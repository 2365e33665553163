"""A TLS client that sends exactly the bytes it is told to, and knows how the connection ended.

TLS runs in memory over an asyncio socket, so that one thread has hundreds of clients, each piece
is a record of its own, and a close_notify, a bare FIN and a reset can be told apart.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Self

PATIENCE = 30.0
"""Seconds after which a connection that does not end is a failure."""
_FAIRNESS = 64
"""Records after which others have their turn."""


class Client:
    """One connection from `source`, an address of its own in 127.0.0.0/8."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tls: ssl.SSLObject
    ) -> None:
        self.received = b""
        self.ending: str | None = None
        """`in order` (close_notify), `cut` (an end without it) or `reset`."""
        self._reader = reader
        self._writer = writer
        self._tls = tls
        self._changed = asyncio.Condition()
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, port: int, trust: ssl.SSLContext, source: str) -> Self:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = cls(reader, writer, trust.wrap_bio(incoming, outgoing, server_hostname="localhost"))
        client._incoming, client._outgoing = incoming, outgoing
        while True:
            try:
                client._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                data = await reader.read(65536)
                assert data, "the handshake failed"
                incoming.write(data)
        writer.write(outgoing.read())
        client._reading = asyncio.create_task(client._read())
        return client

    _incoming: ssl.MemoryBIO
    _outgoing: ssl.MemoryBIO

    async def send(self, pieces: Iterable[bytes]) -> None:
        """Each piece as a record of its own, until the other side has had enough."""
        for number, piece in enumerate(pieces):
            if self.ending is not None or self._writer.is_closing():
                return
            self._tls.write(piece)
            self._writer.write(self._outgoing.read())
            if number % _FAIRNESS == 0:
                try:
                    await self._writer.drain()
                    await asyncio.sleep(0)
                except ConnectionError:
                    return  # how it ended is the reader's to find

    def send_end(self) -> None:
        """close_notify and the end of the stream; reading goes on."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # ours is written, the other's is still to come
        try:
            self._writer.write(self._outgoing.read())
            self._writer.write_eof()
        except OSError:
            pass  # the other side has ended it already

    async def wait_for(self, enough: Callable[[bytes], bool]) -> None:
        """Until `enough` holds of what was received, or the connection ended."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: self.ending is not None or enough(self.received))

    async def wait_end(self) -> bytes:
        """Everything received until the connection ended."""
        assert self._reading is not None
        await asyncio.wait_for(asyncio.shield(self._reading), PATIENCE)
        return self.received

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _read(self) -> None:
        ending = None
        while ending is None:
            try:
                data = await self._reader.read(65536)
            except ConnectionError:
                ending = "reset"
                break
            if not data:
                ending = "cut"
            self._incoming.write(data)
            ending = self._decrypt() or ending
            async with self._changed:
                self._changed.notify_all()
        async with self._changed:
            self.ending = ending
            self._changed.notify_all()

    def _decrypt(self) -> str | None:
        try:
            while data := self._tls.read(65536):
                self.received += data
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            pass
        return "in order"
