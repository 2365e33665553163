"""One request on an HTTP/1.1 connection, and the way to answer it.

Owns the framing in both directions: the request body is decoded, counted and
timed here; the response is framed as its client's version allows. Bytes of a
response are held back until somebody would wait, so that a small answer is one
write. What the answer says is decided elsewhere.

Before: `http.h1`. After: `proxy`.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from botproxy import errors
from botproxy.http.body import LAST_CHUNK, BodyError, ChunkedDecoder, Decoder, LengthDecoder, chunk
from botproxy.http.head import HeadLimits
from botproxy.model import Record, RequestHead
from botproxy.net.stream import SocketStream, StreamClosed, StreamTimeout
from botproxy.policy.limits import too_slow
from botproxy.reasons import REASONS

if TYPE_CHECKING:
    from botproxy.config.schema import Limits, Timeouts

HELD_LIMIT = 16 * 1024
"""Response bytes held back at most; one TLS record."""
TINY_CHUNKS = 10_000
"""Chunks of an upload that may be as small as one byte; from there on they must be 16 bytes on average,
because each costs us a hundred times what it costs its sender."""
_WITHOUT_BODY = frozenset({*range(100, 200), 204, 304})  # RFC 9110 6.4.1
_ACCEPT = re.compile(rb"^accept:([^\r\n]{0,1024})", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says about client connections: its keys of these names, close at hand."""

    head: HeadLimits
    body: int
    body_rate: float
    requests_per_connection: int
    connection_age: float
    head_timeout: float
    body_timeout: float
    body_grace: float
    keep_alive: float
    write: float

    @classmethod
    def of(cls, limits: Limits, timeouts: Timeouts) -> Settings:
        return cls(
            HeadLimits(limits.head, limits.fields, limits.request_line),
            limits.body,
            limits.body_rate,
            limits.requests_per_connection,
            limits.connection_age,
            timeouts.head,
            timeouts.body,
            timeouts.body_grace,
            timeouts.keep_alive,
            timeouts.write,
        )


class Exchange:
    """A request that has a head (None: it was refused), and its response."""

    def __init__(
        self,
        stream: SocketStream,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        head: RequestHead | None,
        raw_head: bytes,
        record: Record,
        may_keep: bool,
    ) -> None:
        """`raw_head`: what arrived of a head, also of one that was refused."""
        self.stream = stream
        self.head = head
        self.record = record
        self.client_gone = False
        """The client left; the task that serves it is being cancelled."""
        self.responded = False
        """The response head was given to `send_head`."""
        self.finished = False
        self.keep = False
        """Whether the connection may carry another request; decided by `send_head`."""
        self._settings = settings
        self._loop = loop
        self._raw_head = raw_head
        self._may_keep = may_keep and head is not None and head.keep_alive
        self._decoder = None if head is None else _decoder(head)
        self.body_complete = self._decoder is None
        """Whether the whole request body was read."""
        self._waited = 0.0
        self._counted = 0
        self._in_grace = True
        self._continued = False
        self._held = b""
        self._flushed = False
        self._chunked = False
        self._without_body = False

    @property
    def accept(self) -> bytes:
        """What the client can read: its Accept fields, of a refused head as far as its bytes show them."""
        if self.head is None:
            return b",".join(_ACCEPT.findall(self._raw_head))
        return b",".join(self.head.fields.values(b"accept"))

    def close_after(self) -> None:
        """Let no other request follow on this connection; the response head says so if it can still."""
        self._may_keep = False

    # The request body

    def admit_body(self) -> None:
        """Raises BodyTooLarge when the announced body is above the limit."""
        head = self.head
        if head is not None and (head.content_length or 0) > self._settings.body:
            raise errors.BodyTooLarge

    def take_body(self) -> bytes:
        """What of the body has arrived already; never waits. Raises ClientError."""
        arrived = self.stream.peek()
        return self._decode(self.stream.take()) if arrived and self._decoder is not None else b""

    async def read_body(self) -> bytes:
        """The next piece of the body; empty at its end.

        Raises BodyTimeout when it stops or drips, BodyTooLarge, BadRequest, ClientGone.
        """
        settings = self._settings
        while not self.body_complete:
            self._check_rate(settings.body_grace)
            began = self._loop.time()
            try:
                data = await self.stream.read(began + settings.body_timeout)
            except StreamTimeout:
                raise errors.BodyTimeout from None
            except StreamClosed:
                raise errors.ClientGone("inside the request body") from None
            if not data:
                raise errors.ClientGone("inside the request body")
            self._waited += self._loop.time() - began
            if content := self._decode(data):
                return content
        return b""

    def _check_rate(self, span: float) -> None:
        """Each span of waiting for the client but the first must have brought enough.

        Spans, because an average would let one large piece pay for hours of dripping; waiting for the
        client alone, because a bot that is slow to take the body is not the client's fault.
        """
        if self._waited < span:
            return
        received = self.record.bytes_in - self._counted
        if self._in_grace:
            self._in_grace = False
        elif too_slow(received, self._waited, self._settings.body_rate):
            raise errors.BodyTimeout("the body arrives too slowly")
        self._counted, self._waited = self.record.bytes_in, 0.0

    def _decode(self, data: bytes) -> bytes:
        assert self._decoder is not None
        try:
            content, rest = self._decoder.feed(data)
        except BodyError as error:
            raise errors.BadRequest(str(error)) from None
        if self._decoder.done:
            self.body_complete = True
        if rest:
            self.stream.unread(rest)
        self.record.bytes_in += len(content)
        if self.record.bytes_in > self._settings.body:
            raise errors.BodyTooLarge
        return content

    # The response

    def send_continue(self) -> None:
        """`100 Continue`, at most once, and only to a client that asked and still waits."""
        if (
            self.head is not None
            and self.head.expects_continue
            and not self._continued
            and not self.responded
        ):
            self._continued = True
            self.stream.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def send_head(self, status: int, block: bytes, length: int | None) -> None:
        """The response head: `block` is its field lines without framing.

        `length` is the body's, None when unknown: then it is chunked, or lasts until the connection
        ends for a client that speaks HTTP/1.0.
        """
        head, record = self.head, self.record
        self.responded = True
        record.status = status
        minor = 1 if head is None else head.minor
        if status in _WITHOUT_BODY or (head is not None and head.method == b"HEAD"):
            self._without_body = True
        # An early refusal says that the connection ends; an early answer may still see the upload complete.
        keep = self._may_keep and (status < 400 or self.body_complete)
        framing = b""
        if length is not None and status >= 200 and status != 204:
            framing = b"Content-Length: %d\r\n" % length
        elif not self._without_body:
            self._chunked = minor == 1
            keep = keep and self._chunked
            framing = b"Transfer-Encoding: chunked\r\n" if self._chunked else b""
        if status == 101:
            keep = False
        elif not keep:
            framing += b"Connection: close\r\n"
        elif not minor:
            framing += b"Connection: keep-alive\r\n"
        self.keep = keep
        self._held = b"".join((status_line(status), block, framing, b"\r\n"))

    def send_body(self, data: bytes) -> None:
        """A piece of the response body, kept back until `flush`, `drain` or `finish`."""
        if data and not self._without_body:
            self.record.bytes_out += len(data)
            self._held += chunk(data) if self._chunked else data
            if len(self._held) >= HELD_LIMIT:
                self.flush()

    def flush(self) -> None:
        """Give the client what is held back."""
        if held := self._held:
            self._flushed = True
            self._held = b""
            self.stream.write(held)

    async def drain(self) -> None:
        """Flush, and wait while too much is unsent. Raises SlowReader, ClientGone."""
        self.flush()
        try:
            await self.stream.drain()
        except StreamTimeout:
            raise errors.SlowReader from None
        except StreamClosed:
            raise errors.ClientGone("inside the response") from None

    def finish(self) -> None:
        """The response is complete."""
        if self._chunked and not self._without_body:
            self._held += LAST_CHUNK
        self.flush()
        self.keep = self.keep and self.body_complete
        self.finished = True

    def take_back(self) -> bool:
        """Forget the response, if none of it has gone out yet; then another may be sent."""
        if self._flushed:
            return False
        self._held = b""
        self.responded = self._chunked = self._without_body = False
        self.record.bytes_out = 0
        return True

    def abort(self) -> None:
        """Reset the connection, so that the client cannot take the response for complete."""
        self.keep = False
        self._held = b""
        self.stream.abort()


@lru_cache(maxsize=1024)
def status_line(status: int) -> bytes:
    """Status line with our own reason phrase; the bot's is never relayed (it may hold anything)."""
    return b"HTTP/1.1 %d %b\r\n" % (status, REASONS.get(status, b"Unknown"))


def _decoder(head: RequestHead) -> Decoder | None:
    if head.chunked:
        return ChunkedDecoder(tiny_chunks=TINY_CHUNKS)
    return LengthDecoder(head.content_length) if head.content_length else None
