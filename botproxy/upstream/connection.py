"""One HTTP/1.1 conversation with a bot over one stream.

Reads response heads and bodies under their deadlines, turns what the peer does
wrong into named errors, and knows when the connection may carry another request:
only when both directions ended where they should and not one byte is left over.
Which request it carries, and whether to keep it, is decided elsewhere.

Before: `upstream.pool`. After: the bot.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import Protocol

from botproxy import errors
from botproxy.fields import Shape
from botproxy.http.body import BodyError, ChunkedDecoder, CloseDecoder, Decoder, LengthDecoder
from botproxy.http.head import RESPONSE_HEAD_LIMIT, parse_response, reject_early_response
from botproxy.model import ResponseHead
from botproxy.net.stream import SocketStream, StreamClosed, StreamTimeout

INTERIM_LIMIT = 10
"""1xx responses before the final one."""
GUNICORN_IDLE = 1.5
"""gunicorn closes kept connections after 2 s and says so nowhere but in its name; we must be first."""


class Upload(Protocol):
    """A request body on its way, beside the response."""

    def response_deadline(self) -> float:
        """Loop time until which the response head must come. Raises what ended the upload."""

    def on_continue(self) -> None:
        """The bot wants the body."""


class UpstreamConnection:
    """A connection to a bot, carrying one request at a time."""

    def __init__(self, stream: SocketStream, upstream: str, write_patience: float) -> None:
        self.stream = stream
        self.upstream = upstream
        self.reused = False
        """Whether it carried a request before this one."""
        self.request_sent = False
        """Set by the sender once the last byte of the request was written."""
        self.idle_limit = inf
        """Seconds the bot is known to keep idle connections, when that is less than usual."""
        self.body_complete = True
        """Whether all of the response was read."""
        self._decoder: Decoder | None = None
        self._may_reuse = False
        self._got_bytes = False
        self._last: Shape | None = None
        """Of the last response, if it is a familiar one."""
        self._rest_waits = False
        """More has arrived than was decoded at once."""
        self._whole = b""
        """The body, where all of it came with its head."""
        stream.set_write_patience(write_patience)

    def begin(self) -> None:
        """The next request follows."""
        self.request_sent = False
        self._may_reuse = False
        self._got_bytes = False
        self._rest_waits = False
        self._whole = b""

    # The response

    async def read_head(self, method: bytes, deadline: float, upload: Upload | None = None) -> ResponseHead:
        """The final response head; `upload` is told of a 100, other interim responses are dropped.

        `deadline`: loop time until which to wait; `upload` is asked for another one before each further
        read. Raises BadResponse, UpstreamClosed, ResponseTimeout.
        """
        interim = 0
        while True:
            try:
                data = await self.stream.read(deadline)
            except StreamTimeout:
                raise errors.ResponseTimeout from None
            except StreamClosed:
                raise self._closed_early() from None
            end = data.find(b"\r\n\r\n") if data else -1
            if end < 0:  # seldom: in pieces
                data, end = await self._collect_head(data, deadline, upload)
            self._got_bytes = True
            if end > RESPONSE_HEAD_LIMIT:
                raise errors.BadResponse("the head is too long")
            rest = data[end + 4 :]
            head = parse_response(data[: end + 4], self._last)
            if rest and len(rest) == head.content_length and _has_body(method, head.status):
                self._whole = rest
            elif rest:
                self.stream.unread(rest)
            if head.status >= 200 or head.status == 101:
                break
            interim += 1
            if interim > INTERIM_LIMIT:
                raise errors.BadResponse("too many interim responses")
            if upload is not None:
                if head.status == 100:
                    upload.on_continue()
                deadline = upload.response_deadline()
        self._decoder = decoder = None if self._whole else _decoder(method, head)
        self.body_complete = decoder is None and not self._whole
        self._may_reuse = head.keep_alive and head.status != 101 and not isinstance(decoder, CloseDecoder)
        self._last = head.fields.shape if head.fields.shape.familiar else None
        if not self.reused:
            self._note_server(head)
        return head

    def _note_server(self, head: ResponseHead) -> None:
        for server in head.fields.values(b"server"):
            if server.lower().startswith(b"gunicorn"):
                self.idle_limit = GUNICORN_IDLE

    async def _collect_head(self, data: bytes, deadline: float, upload: Upload | None) -> tuple[bytes, int]:
        """`data` and more, until there is a blank line; and where that begins."""
        more = data
        checked = 0
        while True:
            if not more:
                raise self._closed_early()
            self._got_bytes = True
            end = data.find(b"\r\n\r\n", max(0, checked - 3))
            if end >= 0:
                return data, end
            reject_early_response(data, checked)
            checked = len(data)
            if upload is not None:
                deadline = upload.response_deadline()
            try:
                more = await self.stream.read(deadline)
            except StreamTimeout:
                raise errors.ResponseTimeout from None
            except StreamClosed:
                raise self._closed_early() from None
            data += more

    def _closed_early(self) -> errors.UpstreamError:
        if self._got_bytes:
            return errors.BadResponse("the connection ended inside the head")
        return errors.UpstreamClosed()

    # The body

    def take_body(self) -> bytes:
        """What of the body has arrived already; never waits. Raises UpstreamAborted."""
        if whole := self._whole:
            self._whole = b""
            self.body_complete = True
            return whole
        return self._decode(self.stream.take()) if self.stream.peek() else b""

    async def read_body(self, deadline: float = inf) -> bytes:
        """The next piece of the response body; empty at its end.

        Raises UpstreamStalled at `deadline`, UpstreamAborted when the body breaks off or its framing.
        """
        if self._whole:
            return self.take_body()
        while not self.body_complete:
            if self._rest_waits:
                self._rest_waits = False
                await asyncio.sleep(0)  # other connections first
            try:
                data = await self.stream.read(deadline)
            except StreamTimeout:
                raise errors.UpstreamStalled from None
            except StreamClosed:
                raise errors.UpstreamAborted from None
            if data:
                if content := self._decode(data):
                    return content
            elif isinstance(self._decoder, CloseDecoder):
                self.body_complete = True
            else:
                raise errors.UpstreamAborted
        return b""

    def _decode(self, data: bytes) -> bytes:
        decoder = self._decoder
        assert decoder is not None
        try:
            content, rest = decoder.feed(data)
        except BodyError as error:
            raise errors.UpstreamAborted(str(error)) from None
        if decoder.done:
            self.body_complete = True
            if rest:
                self._may_reuse = False
        elif rest:
            self.stream.unread(rest)
            self._rest_waits = True
        return content

    # Another request

    def is_reusable(self) -> bool:
        """Whether this exchange ended so cleanly that another may follow."""
        stream = self.stream
        return (
            self._may_reuse
            and self.request_sent
            and self.body_complete
            and not stream.ended
            and stream.error is None
            and not stream.peek()
        )

    def shut(self) -> None:
        self.stream.shut()

    def abort(self) -> None:
        """Reset, so that the bot cannot take a request cut short for complete."""
        self.stream.abort()


def _has_body(method: bytes, status: int) -> bool:
    return method != b"HEAD" and status >= 200 and status not in (204, 304)


def _decoder(method: bytes, head: ResponseHead) -> Decoder | None:
    """RFC 9112 6.3, for responses; None where no byte of a body is to come."""
    length = head.content_length
    if length == 0 or not _has_body(method, head.status):
        return None
    if head.chunked:
        return ChunkedDecoder()
    return CloseDecoder() if length is None else LengthDecoder(length)
