"""The server side of one HTTP/1.1 connection.

Collects heads under their deadlines, makes an Exchange of each, hands it to the
application and decides whether another may follow. Requests are served one at a
time: bytes of the next wait unread, which stops a client that pipelines too much.
A client that leaves while its request is served cancels the task that serves it.

Before: `server.listener`. After: `proxy` (or `server.plain`), as `Application`.
"""

from __future__ import annotations

import asyncio
import random
import re
from time import monotonic
from typing import Protocol

from botproxy import errors
from botproxy.fields import Shape
from botproxy.http.exchange import Exchange, Settings
from botproxy.http.head import parse_request, reject_early
from botproxy.model import Peer, Record, RequestHead, TlsInfo
from botproxy.net.stream import WRITE_HIGH, SocketStream, StreamClosed, StreamTimeout

LEADING_CRLF_LIMIT = 2
"""Empty lines skipped before a request line (RFC 9112 2.2); more would be free work for us."""
HALF_CLOSE_PATIENCE = 0.5
"""Seconds without a byte moving after which a client that closed its side counts as gone. A FIN alone
cannot tell a client that left from one that only finished sending."""

_CR = ord("\r")
_REQUEST_LINE = re.compile(rb"([A-Z]{1,32}) ([!-~]{1,8192}) HTTP/")


class Kept(Protocol):
    """A connection to a bot kept for its client."""

    def shut(self) -> None: ...


class Application(Protocol):
    """What happens with requests."""

    async def handle(self, exchange: Exchange, kept: dict[str, Kept]) -> None:
        """Answer `exchange`, whatever happens; cancelled when its client leaves."""

    def refuse(self, exchange: Exchange, error: errors.ProxyError) -> None:
        """Answer a request that has no valid head."""


class ClientConnection:
    """One client connection, from its first request to its end."""

    def __init__(
        self,
        stream: SocketStream,
        peer: Peer,
        tls: TlsInfo | None,
        settings: Settings,
        application: Application,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.stream = stream
        self.peer = peer
        self.tls = tls
        self.served = 0
        self.draining = False
        self._settings = settings
        self._application = application
        self._loop = loop
        self._kept: dict[str, Kept] = {}
        self._task: asyncio.Task[None] | None = None
        self._waiting_for_request = False
        self._exchange: Exchange | None = None
        """The one under way; a connection that waits holds nothing of the last one."""
        self._left_over = False
        """The client may still be sending what belongs to the last request."""
        self._started = 0.0
        """When the first byte of the head was there."""
        self._raw_head = b""
        self._last: Shape | None = None
        """Of the last request, if it is a familiar one."""
        self._watched: Exchange | None = None
        """The exchange whose client closed its side."""
        self._oldest = monotonic() + settings.connection_age * random.uniform(0.9, 1.1)
        stream.set_write_patience(settings.write)

    async def run(self) -> None:
        """Serve requests until one side has enough. Closes the stream."""
        self._task = asyncio.current_task()
        linger = False
        try:
            while await self._serve_one():
                if self.stream.peek() or self.stream.unsent > WRITE_HIGH:
                    await self._let_others()
            may_send = self._left_over or not self.stream.ended
            linger = self.served > 0 and may_send and (self._left_over or not self.stream.is_quiet())
        except StreamClosed:
            pass  # nobody is left to tell, or nobody can wait; an exchange under way has logged it
        except StreamTimeout:
            self.stream.abort()  # it asks and does not take the answers
        finally:
            self.stream.on_lost = None
            for connection in self._kept.values():
                connection.shut()
            await self.stream.close(linger=linger)

    def drain(self, patience: float = 0.0) -> None:
        """Serve what has begun, and nothing after it; end now when nothing has.

        With `patience` a request that comes within so many seconds is served as the last one. Without, one
        that is on its way now meets a closed connection.
        """
        self.draining = True
        if self._exchange is not None:
            self._exchange.close_after()
        if patience > 0:
            self._loop.call_later(patience, self.drain)
            return
        if not self.is_idle:
            return
        if self.stream.is_quiet():
            self.stream.interrupt(StreamTimeout("draining"))
        else:  # with a part of a record, which may become a request
            self.stream.set_read_deadline(self._loop.time() + self._settings.head_timeout)

    def shed(self) -> None:
        """End now if it waits for another request, even one that has begun to arrive."""
        self.draining = True
        if self.is_idle:
            self.stream.interrupt(StreamClosed("shed"))

    @property
    def is_idle(self) -> bool:
        """Whether it waits for another request of a client that was served before."""
        return self._waiting_for_request and self.served > 0

    def cut(self) -> None:
        """End now, whatever is under way."""
        if self._task is not None:
            self._task.cancel()
        self.stream.abort()

    async def _let_others(self) -> None:
        """Between an answer and a request that waits behind it: a crowd of them is not served in one go, nor
        faster than its answers are taken. Raises StreamTimeout, StreamClosed.
        """
        await self.stream.drain()
        await asyncio.sleep(0)

    async def _serve_one(self) -> bool:
        """Whether another request may follow."""
        settings = self._settings
        self._exchange, self._raw_head = None, b""
        deadline = self._loop.time() + (settings.keep_alive if self.served else settings.head_timeout)
        self._waiting_for_request = True
        try:
            data = await self.stream.read(deadline)
            if data == b"\r\n":  # behind a body, as some clients send it: no request has begun
                data = await self.stream.read(deadline)
        except StreamTimeout:
            return False
        finally:
            self._waiting_for_request = False
        if not data:
            return False
        self._started = monotonic()
        self._raw_head = data
        head = None
        try:
            end = data.find(b"\r\n\r\n")
            if end > 0 and data[0] != _CR:  # as nearly always: all of it at once
                raw = self._cut_head(data, end + 4)
            elif not (raw := await self._collect_head(data, self._loop.time() + settings.head_timeout)):
                return False
            head = parse_request(raw, settings.head, self._last)
            self._last = head.fields.shape if head.fields.shape.familiar else None
            if self.stream.error is not None:
                raise errors.ClientGone  # it left while this request waited behind another
        except errors.ClientError as error:
            self._refuse(head, error)
            return False
        exchange = self._exchange = self._make_exchange(head)
        self.stream.on_lost = self._on_lost
        if self.stream.ended:
            self._watch_half_closed(exchange, None)
        try:
            await self._application.handle(exchange, self._kept)
        except asyncio.CancelledError:
            if not exchange.client_gone or self._task is None:
                raise
            self._task.uncancel()
            self._left_over = not exchange.body_complete
            return False
        self.stream.on_lost = None
        self._left_over = not exchange.body_complete
        return exchange.keep and exchange.finished and not self.draining

    def _refuse(self, head: RequestHead | None, error: errors.ProxyError) -> None:
        self._left_over = True
        exchange = self._exchange = self._make_exchange(head)
        self._application.refuse(exchange, error)

    def _make_exchange(self, head: RequestHead | None) -> Exchange:
        self.served += 1
        record = Record("", self.peer, self.peer.address, self._started, self.tls, self.served == 1)
        if head is not None:
            record.method, record.target = head.method, head.target
        elif line := _REQUEST_LINE.match(self._raw_head):
            record.method, record.target = line[1], line[2]
        may_keep = (
            not self.draining
            and self.served < self._settings.requests_per_connection
            and self._started < self._oldest
        )
        return Exchange(self.stream, self._settings, self._loop, head, self._raw_head, record, may_keep)

    # The head

    async def _collect_head(self, data: bytes, deadline: float) -> bytes:
        """The next head, of which `data` is there, up to its blank line; empty when the client ends before
        that. Raises HeadTimeout, BadRequest, HeadTooLarge, RequestLineTooLong.
        """
        limits = self._settings.head
        empty_lines = checked = 0
        while True:
            while data.startswith(b"\r\n"):
                empty_lines += 1
                if empty_lines > LEADING_CRLF_LIMIT:
                    raise errors.BadRequest("empty lines before the request line")
                data = data[2:]
            end = data.find(b"\r\n\r\n", max(0, checked - 3))
            if end >= 0:
                return self._cut_head(data, end + 4)
            reject_early(data, checked, limits)
            checked = len(data)
            try:
                more = await self.stream.read(deadline)
            except StreamTimeout:
                raise errors.HeadTimeout from None
            if not more:
                return b""
            data += more
            self._raw_head = data

    def _cut_head(self, data: bytes, size: int) -> bytes:
        limits = self._settings.head
        if size > limits.head:
            first_line = data.find(b"\r\n")
            raise errors.RequestLineTooLong if first_line > limits.request_line else errors.HeadTooLarge
        if len(data) == size:
            return data
        self.stream.unread(data[size:])
        return data[:size]

    # The client leaves

    def _on_lost(self) -> None:
        if self._exchange is not None:
            if self.stream.error is not None:
                self._leave(self._exchange)
            elif self._watched is not self._exchange:  # while reading is paused it is told again and again
                self._watch_half_closed(self._exchange, None)

    def _watch_half_closed(self, exchange: Exchange, before: tuple[int, int] | None) -> None:
        if exchange.finished or self.stream.closed:
            return
        self._watched = exchange
        now = (self.stream.sent, exchange.record.bytes_in)
        if now == before:
            self._leave(exchange)
        else:
            self._loop.call_later(HALF_CLOSE_PATIENCE, self._watch_half_closed, exchange, now)

    def _leave(self, exchange: Exchange) -> None:
        if self._task is not None and not exchange.client_gone and not exchange.finished:
            exchange.client_gone = True
            self._task.cancel()
