"""A bot that keeps every byte it gets and tells requests from one another by the canonical form alone.

What botproxy sends must be canonical: one spelling of everything that frames a message. The first
byte that is not is a fault, and the bot reads no further, so that a smuggled request can never
hide behind a lenient reader.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

_START = re.compile(rb"([A-Z][A-Z0-9_-]*) ([^\x00-\x20\x7f-\xff]+) HTTP/1\.1")
_FIELD = re.compile(rb"([A-Za-z0-9_-]+): ([^\x00-\x08\x0a-\x1f\x7f]*)")
_LENGTH = re.compile(r"0|[1-9][0-9]*")
_SIZE = re.compile(rb"[1-9a-f][0-9a-f]*\r\n|0\r\n")


@dataclass
class Request:
    """What the bot saw of one request."""

    head: bytes
    method: str = ""
    target: str = ""
    fields: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False
    serial: int = 0
    """Place among all requests that the bot completed."""

    def values(self, name: str) -> list[str]:
        return [value for other, value in self.fields if other == name]

    @property
    def meaning(self) -> tuple[str, str, bytes]:
        return self.method, self.target, self.body


@dataclass
class Visit:
    """One connection to the bot."""

    raw: bytes = b""
    requests: list[Request] = field(default_factory=list)
    fault: str = ""
    """Why what was sent is not canonical."""
    closed: bool = False

    @property
    def complete(self) -> list[Request]:
        return [request for request in self.requests if request.complete]


class NotCanonicalError(Exception):
    """A spelling that botproxy must not use."""


Answer = Callable[[Request, asyncio.StreamWriter, Visit], Awaitable[bool]]
"""Answers a complete request; False ends the connection."""


async def answer_ok(request: Request, writer: asyncio.StreamWriter, _: Visit) -> bool:
    """200, and which of all requests this was."""
    content = b"" if request.method == "HEAD" else b"ok"
    writer.write(
        b"HTTP/1.1 200 OK\r\nX-Serial: %d\r\nContent-Length: 2\r\n\r\n%b" % (request.serial, content)
    )
    await writer.drain()
    return "close" not in request.values("connection")


class Origin:
    """The bot. Visits are found by the client address that botproxy vouches for."""

    def __init__(self, answer: Answer = answer_ok) -> None:
        self.unattributed: list[Visit] = []
        """Connections whose first head names no client: there must be none with any byte."""
        self._visits: dict[str, list[Visit]] = {}
        self._answer = answer
        self._serial = 0
        self._changed = asyncio.Condition()
        self._serving: set[asyncio.Task[None]] = set()
        self.port = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Self]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", limit=1 << 20, backlog=1024)
        self.port = int(server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            server.close()
            await asyncio.gather(*self._serving)
            await server.wait_closed()

    def visits(self, client: str) -> list[Visit]:
        return self._visits.get(client, [])

    async def wait_left(self, client: str) -> list[Visit]:
        """All connections made for `client`, once they are closed."""
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: all(visit.closed for visit in self.visits(client)))
        return self.visits(client)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visit = Visit()
        wire = _Recorded(reader, visit)
        self.unattributed.append(visit)
        try:
            while await self._serve_one(wire, writer, visit):
                pass
        except NotCanonicalError as error:
            visit.fault = str(error)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # a request cut short stays incomplete
        finally:
            writer.transport.abort()
            async with self._changed:
                visit.closed = True
                self._changed.notify_all()

    async def _serve_one(self, wire: _Recorded, writer: asyncio.StreamWriter, visit: Visit) -> bool:
        request = Request(await wire.until(b"\r\n\r\n"))
        visit.requests.append(request)
        parse_head(request)
        if visit in self.unattributed and len(request.values("x-forwarded-for")) == 1:
            self.unattributed.remove(visit)
            self._visits.setdefault(request.values("x-forwarded-for")[0], []).append(visit)
        if "100-continue" in request.values("expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.values("transfer-encoding"):
            while size := await _chunk_size(wire):
                request.body += await wire.exactly(size)
                if await wire.exactly(2) != b"\r\n":
                    raise NotCanonicalError("a chunk without its end")
            if await wire.exactly(2) != b"\r\n":
                raise NotCanonicalError("trailers")
        elif lengths := request.values("content-length"):
            request.body = await wire.exactly(int(lengths[0]))
        request.complete = True
        self._serial += 1
        request.serial = self._serial
        return await self._answer(request, writer, visit)


class _Recorded:
    """A reader whose visit keeps all it read."""

    def __init__(self, reader: asyncio.StreamReader, visit: Visit) -> None:
        self._reader = reader
        self._visit = visit

    async def until(self, mark: bytes) -> bytes:
        try:
            data = await self._reader.readuntil(mark)
        except asyncio.IncompleteReadError as error:
            self._visit.raw += error.partial
            raise
        self._visit.raw += data
        return data

    async def exactly(self, size: int) -> bytes:
        try:
            data = await self._reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            self._visit.raw += error.partial
            raise
        self._visit.raw += data
        return data


async def _chunk_size(wire: _Recorded) -> int:
    line = await wire.until(b"\r\n")
    if _SIZE.fullmatch(line) is None:
        raise NotCanonicalError("a chunk size that is more than a number")
    return int(line, 16)


def parse_head(request: Request) -> None:
    """Fill in what the head says. Raises NotCanonicalError."""
    start, *lines = request.head[:-4].split(b"\r\n")
    match = _START.fullmatch(start)
    if match is None:
        raise NotCanonicalError("the request line")
    request.method, request.target = match[1].decode(), match[2].decode()
    for line in lines:
        found = _FIELD.fullmatch(line)
        if found is None:
            raise NotCanonicalError("a field line")
        request.fields.append((found[1].decode().lower(), found[2].decode("latin-1")))
    lengths, codings = request.values("content-length"), request.values("transfer-encoding")
    if len(request.values("host")) != 1:
        raise NotCanonicalError("not exactly one Host")
    if len(lengths) + len(codings) > 1:
        raise NotCanonicalError("framed more than once")
    if any(_LENGTH.fullmatch(length) is None for length in lengths):
        raise NotCanonicalError("a Content-Length with another spelling")
    if codings not in ([], ["chunked"]):
        raise NotCanonicalError("a Transfer-Encoding other than chunked")
