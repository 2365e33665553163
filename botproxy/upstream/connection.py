"""One HTTP/1.1 conversation with a bot over one stream.

Reads response heads and bodies under their deadlines, turns what the peer does
wrong into named errors, and knows when the connection may carry another request:
only when both directions ended where they should and not one byte is left over.
Which request it carries, and whether to keep it, is decided elsewhere.

Before: `upstream.pool`. After: the bot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from botproxy import errors
from botproxy.http.body import BodyError, ChunkedDecoder, CloseDecoder, Decoder, LengthDecoder
from botproxy.http.head import RESPONSE_HEAD_LIMIT, parse_response, reject_early_response
from botproxy.model import ResponseHead
from botproxy.net.stream import SocketStream, StreamClosed, StreamTimeout

INTERIM_LIMIT = 10
"""1xx responses before the final one."""
GUNICORN_IDLE = 1.5
"""gunicorn closes kept connections after 2 s and says so nowhere but in its name; we must be first."""


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
        self._decoder: Decoder | None = None
        self._may_reuse = False
        self._got_bytes = False
        stream.set_write_patience(write_patience)

    def begin(self) -> None:
        """The next request follows."""
        self.request_sent = False
        self._may_reuse = False
        self._got_bytes = False
        self._decoder = None

    # The response

    async def read_head(
        self, method: bytes, on_continue: Callable[[], None], deadline: Callable[[], float]
    ) -> ResponseHead:
        """The final response head; `on_continue` is called for a 100, other interim responses are dropped.

        `deadline` gives the loop time until which to wait, asked before each read. Raises
        BadResponse, UpstreamClosed, ResponseTimeout.
        """
        interim = 0
        while True:
            raw = await self._collect_head(deadline)
            head = parse_response(raw)
            if head.status >= 200 or head.status == 101:
                break
            interim += 1
            if interim > INTERIM_LIMIT:
                raise errors.BadResponse("too many interim responses")
            if head.status == 100:
                on_continue()
        self._decoder = _decoder(method, head)
        self._may_reuse = (
            head.keep_alive and not isinstance(self._decoder, CloseDecoder) and head.status != 101
        )
        for lower, _, value in head.fields:
            if lower == b"server" and value.lower().startswith(b"gunicorn"):
                self.idle_limit = GUNICORN_IDLE
        return head

    async def _collect_head(self, deadline: Callable[[], float]) -> bytes:
        data = b""
        while True:
            checked = max(0, len(data) - 3)
            try:
                more = await self.stream.read(deadline())
            except StreamTimeout:
                raise errors.ResponseTimeout from None
            except StreamClosed:
                raise self._closed_early() from None
            if not more:
                raise self._closed_early()
            self._got_bytes = True
            data = data + more if data else more
            end = data.find(b"\r\n\r\n", checked)
            if end > RESPONSE_HEAD_LIMIT:
                raise errors.BadResponse("the head is too long")
            if end >= 0:
                if len(data) > end + 4:
                    self.stream.unread(data[end + 4 :])
                return data[: end + 4]
            reject_early_response(data, checked)

    def _closed_early(self) -> errors.UpstreamError:
        if self._got_bytes:
            return errors.BadResponse("the connection ended inside the head")
        return errors.UpstreamClosed()

    # The body

    @property
    def body_complete(self) -> bool:
        return self._decoder is None or self._decoder.done

    @property
    def has_arrived(self) -> bool:
        """Whether `read_body` would return without waiting."""
        return bool(self.stream.peek()) or self.stream.ended

    async def read_body(self, deadline: float = inf) -> bytes:
        """The next piece of the response body; empty at its end.

        Raises UpstreamStalled at `deadline`, UpstreamAborted when the body breaks off or its framing.
        """
        decoder = self._decoder
        while decoder is not None and not decoder.done:
            try:
                data = await self.stream.read(deadline)
            except StreamTimeout:
                raise errors.UpstreamStalled from None
            except StreamClosed:
                raise errors.UpstreamAborted from None
            if not data:
                if isinstance(decoder, CloseDecoder):
                    decoder.done = True
                    return b""
                raise errors.UpstreamAborted
            try:
                content, rest = decoder.feed(data)
            except BodyError as error:
                raise errors.UpstreamAborted(str(error)) from None
            if rest and decoder.done:
                self._may_reuse = False
            elif rest:
                self.stream.unread(rest)
                await asyncio.sleep(0)  # other connections first
            if content:
                return content
        return b""

    # Another request

    @property
    def is_reusable(self) -> bool:
        """Whether this exchange ended so cleanly that another may follow."""
        stream = self.stream
        alive = not stream.ended and stream.error is None and not stream.peek()
        return self._may_reuse and self.request_sent and self.body_complete and alive

    def is_quiet(self) -> bool:
        """Whether the bot said nothing and did not leave while the connection was idle."""
        return self.stream.is_quiet()

    def shut(self) -> None:
        self.stream.shut()

    def abort(self) -> None:
        """Reset, so that the bot cannot take a request cut short for complete."""
        self.stream.abort()


def _decoder(method: bytes, head: ResponseHead) -> Decoder | None:
    """RFC 9112 6.3, for responses."""
    if method == b"HEAD" or head.status in (101, 204, 304):
        return None
    if head.chunked:
        return ChunkedDecoder()
    if head.content_length is not None:
        return LengthDecoder(head.content_length)
    return CloseDecoder()
