"""One request from its head to its last byte: the table of contents of this program.

`Proxy.handle` asks the guards in order; each returns or raises. A request goes
down once and comes up once; the only arrow back is the second try of `handle` on a
fresh connection, when a kept one turned out to be dead before it gave a byte.
Every failure ends in `_fail`, every request in one record.

Before: `http.h1`. After: `policy.*` for what is decided, `upstream.*` for the bot.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import ssl
from collections.abc import Callable, Mapping
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from botproxy import errors
from botproxy.fields import Fields
from botproxy.http.body import LAST_CHUNK, chunk
from botproxy.http.dates import http_date
from botproxy.http.exchange import Exchange
from botproxy.http.h1 import Kept
from botproxy.http.tunnel import Tunnel
from botproxy.model import Record, RequestHead, ResponseHead
from botproxy.net.deadlines import Deadlines
from botproxy.net.stream import WRITE_HIGH, StreamClosed, StreamTimeout
from botproxy.policy import refusals
from botproxy.policy.headers import TowardBot, TowardClient, client_address, new_request_id
from botproxy.policy.routes import RouteTable
from botproxy.upstream.connection import UpstreamConnection
from botproxy.upstream.dial import Dialer
from botproxy.upstream.hold import Hold
from botproxy.upstream.pool import Pool

if TYPE_CHECKING:
    from botproxy.config.schema import Config

logger = logging.getLogger(__name__)

CONTINUE_PATIENCE = 1.0
"""Seconds a bot may take to answer `Expect: 100-continue`; many never do, and the client waits."""
_REPEATABLE = frozenset({b"GET", b"HEAD", b"OPTIONS"})
"""Methods sent again when a kept connection was dead: safe (RFC 9110 9.2.1) and without a body here."""
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3


class Limiter(Protocol):
    """The rate limits; where the counts are kept is the worker's business."""

    def admit(self, address: str, route: int) -> None:
        """Raises RateLimited."""


class _Bot:
    """Everything about one upstream."""

    def __init__(
        self,
        name: str,
        config: Config,
        verification: ssl.SSLContext | None,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
    ) -> None:
        upstream = config.upstreams[name]
        self.name = name
        self.pool = Pool(name, upstream.reuse, config.timeouts.upstream_keep_alive, loop)
        dialer = Dialer(upstream, verification, config.timeouts.connect, loop, deadlines)
        self.hold = Hold(dialer, upstream.hold, config.limits.waiting)


class Proxy:
    """The application behind the TLS listeners."""

    def __init__(
        self,
        config: Config,
        verifications: Mapping[str, ssl.SSLContext],
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        limiter: Limiter,
        record: Callable[[Record], None],
    ) -> None:
        """`verifications`: as `upstream.dial.verifications` made them."""
        self._loop = loop
        timeouts = config.timeouts
        self._write_patience, self._tunnel_patience = timeouts.write, timeouts.tunnel
        self._response_patience, self._idle_patience = timeouts.response or inf, timeouts.idle or inf
        self._trusted = config.trusted_proxies
        self._limiter = limiter
        self._record = record
        self._routes = RouteTable(config)
        self._toward_bot = TowardBot(config)
        self._toward_client = TowardClient(config)
        self._bots = {
            name: _Bot(name, config, verifications.get(name), loop, deadlines) for name in config.upstreams
        }

    async def handle(self, exchange: Exchange, kept: dict[str, Kept]) -> None:
        """Answer `exchange`. `kept` holds the client's own connections to bots."""
        head, record = exchange.head, exchange.record
        assert head is not None
        peer = record.peer
        try:
            if peer.trusted:
                record.client = client_address(peer, head.fields, self._trusted)
            record.id = self._toward_bot.request_id(peer, head.fields)
            route = self._routes.match(head.host, head.target)
            record.route, record.upstream = route.name, route.upstream
            self._limiter.admit(record.client, route.index)
            if head.content_length:
                exchange.admit_body()
            fields = self._toward_bot.block(head, peer, record.client, b"https", record.id)
            bot = self._bots[route.upstream]
            try:
                connection = bot.pool.take(kept) or await self._connect(record, bot)
                await self._converse(exchange, bot, connection, fields, kept)
            except errors.UpstreamError as error:
                if not record.reused or not _may_repeat(head, error):
                    raise
                await self._converse(exchange, bot, await self._connect(record, bot), fields, kept)
        except errors.ProxyError as error:
            self._fail(exchange, error)
        except asyncio.CancelledError:
            self._fail(exchange, errors.ClientGone() if exchange.client_gone else errors.Stopping())
            raise
        except Exception:  # the one place around an exchange: a bug costs this request, not the worker
            logger.exception("request failed")
            self._fail(exchange, errors.InternalError())
        finally:
            record.total = monotonic() - record.started
            self._record(record)

    def refuse(self, exchange: Exchange, error: errors.ProxyError) -> None:
        """Answer a request that has no valid head."""
        exchange.record.id = new_request_id()
        self._fail(exchange, error)
        exchange.record.total = monotonic() - exchange.record.started
        self._record(exchange.record)

    def close(self) -> None:
        """Close the connections kept for everybody."""
        for bot in self._bots.values():
            bot.pool.close()

    # Toward the bot

    async def _connect(self, record: Record, bot: _Bot) -> UpstreamConnection:
        started = monotonic()
        try:
            stream = await bot.hold.connect()
        finally:
            record.hold = monotonic() - started
        return UpstreamConnection(stream, bot.name, self._write_patience)

    async def _converse(
        self,
        exchange: Exchange,
        bot: _Bot,
        connection: UpstreamConnection,
        fields: bytes,
        kept: dict[str, Kept],
    ) -> None:
        """One request and its response on `connection`, which is kept, closed or reset at the end."""
        head, record = exchange.head, exchange.record
        assert head is not None
        record.reused = connection.reused
        upload = None
        started = monotonic()
        try:
            raw_head = _request_head(head, fields, keep=bot.pool.keeps)
            connection.begin()
            if exchange.body_complete:
                connection.stream.write(raw_head)
                connection.request_sent = True
                deadline = self._loop.time() + self._response_patience
            else:  # the rest of the body goes beside the response
                upload = _Upload(exchange, connection, self._loop, self._response_patience)
                upload.start(raw_head)
                deadline = upload.response_deadline()
            response = await connection.read_head(head.method, deadline, upload)
            record.upstream_seconds = monotonic() - started
            if response.status == 101:
                _check_switch(head, response)
                await self._tunnel(exchange, connection, response)
            else:
                self._begin_response(exchange, connection, response)
                if not connection.body_complete:
                    await self._stream_body(exchange, connection, upload)
                exchange.finish()
                if not exchange.stream.is_clear():
                    await exchange.drain()
        except BaseException:
            record.upstream_seconds = record.upstream_seconds or monotonic() - started
            connection.abort()
            raise
        finally:
            if upload is not None:
                await upload.stop()
        if head.websocket_key is not None:
            connection.shut()  # asked to switch, the bot alone knows what it takes the next bytes for
        else:
            bot.pool.give_back(connection, kept)

    # From the bot

    def _begin_response(
        self, exchange: Exchange, connection: UpstreamConnection, response: ResponseHead
    ) -> None:
        """Send the head and what of the body has arrived."""
        exchange.send_head(response.status, self._fields(exchange, response.fields), response.content_length)
        if not connection.body_complete:
            exchange.send_body(connection.take_body())

    async def _stream_body(
        self, exchange: Exchange, connection: UpstreamConnection, upload: _Upload | None
    ) -> None:
        """What of the response body is still to come."""
        while not connection.body_complete:
            exchange.flush()
            if exchange.stream.unsent > WRITE_HIGH:
                connection.stream.pause()  # no more is held for a client that does not take it
            await exchange.drain()
            data = await connection.read_body(self._loop.time() + self._idle_patience)
            if upload is not None:
                upload.check()
            exchange.send_body(data)
            del data  # else it is held while a client stalls, beside what is unsent of it

    def _fields(self, exchange: Exchange, fields: Fields, switching: bool = False) -> bytes:
        """Response fields as the client shall see them."""
        tls, head = exchange.record.tls, exchange.head
        named = tls.sni if tls is not None else None  # all that is known of a client whose head was refused
        host = head.host if head is not None else (named or "").lower()
        return self._toward_client.block(fields, tls is not None and tls.hsts, host, http_date, switching)

    async def _tunnel(
        self, exchange: Exchange, connection: UpstreamConnection, response: ResponseHead
    ) -> None:
        exchange.send_head(101, self._fields(exchange, response.fields, switching=True), None)
        exchange.flush()
        record = exchange.record
        record.tunnel = True
        exchange.stream.on_lost = None
        tunnel = Tunnel(exchange.stream, connection.stream, self._tunnel_patience)
        try:
            if not await tunnel.run():
                record.detail = "tunnel cut or silent"
        finally:
            record.bytes_in, record.bytes_out = tunnel.bytes_in, tunnel.bytes_out
        exchange.finish()

    # Failures

    def _fail(self, exchange: Exchange, error: errors.ProxyError) -> None:
        """The one place where an error becomes what the client sees."""
        record = exchange.record
        record.error, record.detail = error.code, error.detail
        if isinstance(error, errors.ClientGone):
            record.status = 499
            if alert := exchange.stream.peer_alert():
                record.detail = f"alert {alert}"
        if exchange.stream.closed:
            return  # cut: nobody is left to tell
        if error.status is None or exchange.client_gone or not exchange.take_back():
            exchange.abort()
            return
        if isinstance(error, errors.BadRequest):
            exchange.close_after()  # what else such a client sends is not worth reading
        status, fields, body = refusals.render(error, record.id, exchange.accept)
        block = self._fields(exchange, fields, switching=status == 426)  # RFC 9110 15.5.22
        exchange.send_head(status, block, len(body))
        exchange.send_body(body)
        exchange.finish()


class _Upload:
    """A request body on its way to the bot, beside the response on its way back."""

    def __init__(
        self,
        exchange: Exchange,
        connection: UpstreamConnection,
        loop: asyncio.AbstractEventLoop,
        response_patience: float,
    ) -> None:
        self._exchange = exchange
        self._connection = connection
        self._loop = loop
        self._patience = response_patience
        self._sent_at = inf
        self._task: asyncio.Task[None] | None = None
        self._error: errors.ProxyError | None = None
        self._may_send: asyncio.Event | None = None
        """Set when the body may follow; None: it need not wait."""

    def start(self, head: bytes) -> None:
        """Send the head and what of the body has arrived; the rest follows in a task of its own."""
        exchange, stream = self._exchange, self._connection.stream
        assert exchange.head is not None
        chunked = exchange.head.chunked
        if exchange.head.expects_continue:
            self._may_send = asyncio.Event()
            stream.write(head)
        else:
            body = exchange.take_body()
            stream.write(head + (chunk(body) if chunked else body) if body else head)
        if exchange.body_complete:
            self._complete(chunked)
        else:
            self._task = self._loop.create_task(self._send(chunked))

    def response_deadline(self) -> float:
        """Loop time until which the response head must come; none while the request is being sent.

        Raises what ended the upload, if something did.
        """
        self.check()
        return self._sent_at + self._patience

    def on_continue(self) -> None:
        """The bot wants the body."""
        self._exchange.send_continue()
        if self._may_send is not None:
            self._may_send.set()

    def check(self) -> None:
        """Raises what ended the upload, if something did."""
        if self._error is not None:
            raise self._error

    async def stop(self) -> None:
        """The response is over; whatever is not sent stays unsent."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _send(self, chunked: bool) -> None:
        stream = self._connection.stream
        try:
            if self._may_send is not None:
                await self._await_permission(self._may_send)
            while data := await self._exchange.read_body():
                stream.write(chunk(data) if chunked else data)
                await stream.drain()
            self._complete(chunked)
        except errors.ProxyError as error:
            self._end(error)
        except StreamTimeout:
            self._end(errors.UpstreamStalled("it does not read the request body"))
        except StreamClosed:
            pass  # the bot closed; whether it answered before is found where its response is read

    async def _await_permission(self, may_send: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(CONTINUE_PATIENCE):
                await may_send.wait()
        except TimeoutError:
            self.on_continue()

    def _complete(self, chunked: bool) -> None:
        if chunked:
            self._connection.stream.write(LAST_CHUNK)
        self._connection.request_sent = True
        self._sent_at = self._loop.time()
        if not self._exchange.responded:
            self._connection.stream.set_read_deadline(self.response_deadline())

    def _end(self, error: errors.ProxyError) -> None:
        self._error = error
        self._connection.stream.interrupt(error)


def _may_repeat(head: RequestHead, error: errors.UpstreamError) -> bool:
    """Whether a request for which a kept connection was dead may be sent again."""
    return (
        error.retry is not errors.Retry.NO
        and head.method in _REPEATABLE
        and not head.has_body
        and head.websocket_key is None
    )


def _request_head(head: RequestHead, fields: bytes, *, keep: bool) -> bytes:
    framing = b"" if keep or head.websocket_key else b"Connection: close\r\n"
    if head.chunked:
        framing += b"Transfer-Encoding: chunked\r\n"
    elif head.content_length is not None:
        framing += b"Content-Length: %d\r\n" % head.content_length
    return b"".join((head.method, b" ", head.target, b" HTTP/1.1\r\n", fields, framing, b"\r\n"))


def _check_switch(head: RequestHead, response: ResponseHead) -> None:
    """A 101 must be the answer to our client's own WebSocket handshake (RFC 6455 4.1)."""
    if head.websocket_key is None:
        raise errors.BadResponse("it switches protocols without being asked")
    accept = base64.b64encode(hashlib.sha1(head.websocket_key + _WEBSOCKET_GUID).digest())
    if [value.lower() for value in response.fields.values(b"upgrade")] != [b"websocket"]:
        raise errors.BadResponse("it switches to another protocol than WebSocket")
    if response.fields.values(b"sec-websocket-accept") != [accept]:
        raise errors.BadResponse("its Sec-WebSocket-Accept does not fit the key")
