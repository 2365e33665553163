"""From an accepted socket to a served connection, and the end of all of them.

Admits a connection under the caps, reads its PROXY header if one is due, shakes
hands, and lets `http.h1` serve it. Knows every connection of its worker, so that
it can drain, shed or cut them. What requests mean is the application's.

Before: `server.listener`. After: `tls.stream`, then `http.h1`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from botproxy import errors
from botproxy.config.values import Network
from botproxy.http.dates import http_date
from botproxy.http.exchange import Settings, status_line
from botproxy.http.h1 import Application, ClientConnection
from botproxy.model import Peer, Record, TlsInfo
from botproxy.net import proxy_protocol
from botproxy.net.deadlines import Deadlines
from botproxy.net.readiness import Readiness
from botproxy.net.stream import SocketStream
from botproxy.policy import refusals
from botproxy.policy.headers import TowardClient, new_request_id
from botproxy.server.census import Census
from botproxy.server.handover import Handover
from botproxy.server.listener import Listener
from botproxy.server.sockets import Bound
from botproxy.tls import stream as tls
from botproxy.tls.context import Served

if TYPE_CHECKING:
    from botproxy.config.schema import Config

logger = logging.getLogger(__name__)

SLOW_HANDSHAKE = 1.0
"""Seconds after which an unfinished handshake must make room for a new one when there are too many."""
UNSENT = 64 * 1024
"""Bytes in the kernel that the network has not taken; above it the socket is not writable."""
SHED_AT_ONCE = 64
"""Idle connections closed when descriptors run out."""


class Refused(Exception):
    """The connection ends before it is one; nobody is told more."""


class Reception:
    """All client connections of one worker."""

    def __init__(
        self,
        config: Config,
        seat: int,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        census: Census,
        context: ssl.SSLContext,
        handover: Handover,
        applications: tuple[Application, Application],
        log: Callable[[Record], None],
        log_handshake: Callable[[str, tls.HandshakeFailed, float], None],
    ) -> None:
        """`applications`: behind TLS listeners, behind plain ones."""
        self._seat = seat
        self._loop = loop
        self._deadlines = deadlines
        self._census = census
        self._context = context
        self._handover = handover
        self._behind_tls, self._behind_plain = applications
        self._log = log
        self._log_handshake = log_handshake
        self._timeouts = config.timeouts
        self._handshake_patience = config.timeouts.handshake
        self._trusted = config.trusted_proxies
        self._toward_client = TowardClient(config)
        self._handshake_limit = config.limits.handshakes
        self._settings = Settings.of(config.limits, config.timeouts)
        self._listeners: list[Listener] = []
        self._tls_listeners: list[Listener] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        """Set when the last task has ended after the drain began."""
        self._connections: set[ClientConnection] = set()
        self._shaking: dict[asyncio.Task[None], float] = {}
        """TLS connections without a finished handshake, oldest first, and since when."""
        self._has_room = True
        """Whether fewer handshakes than the cap are under way."""
        self._making_room: asyncio.TimerHandle | None = None
        self._draining = False
        self._paused = False

    # Beginning

    def listen(self, bounds: Sequence[Bound]) -> None:
        """Begin to accept on `bounds`, which belong to this from now on."""
        for bound in bounds:
            bound.listen()
            listener = Listener(bound.sock, self._loop, partial(self._arrive, bound), self.shed)
            self._listeners.append(listener)
            if bound.tls:
                self._tls_listeners.append(listener)
            self._prepare(bound.sock)
            listener.start()

    def _prepare(self, sock: socket.socket) -> None:
        """What every accepted socket inherits, which spares four system calls for each."""
        if sock.family == socket.AF_UNIX:
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A network that is gone takes nothing and says nothing (RFC 5482).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._timeouts.write * 1000))
        # Else the kernel takes megabytes for a client that does not read, all of them encrypted by us.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)

    def _arrive(self, bound: Bound, sock: socket.socket, address: Any) -> None:
        task = self._loop.create_task(self._serve(bound, sock, address))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        if bound.tls:
            self._shaking[task] = self._loop.time()
            if len(self._shaking) >= self._handshake_limit:
                self._make_room()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._draining and not self._tasks:
            self._empty.set()
        self._leave_handshake(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("connection failed", exc_info=error)

    async def _serve(self, bound: Bound, sock: socket.socket, address: Any) -> None:
        peer = _peer(address, bound.port, self._trusted)
        exempt = peer.trusted
        entered = False
        probe = peer.port if peer.port in self._handover.probes and _is_our_own(sock, peer) else None
        try:
            try:
                speaks_for_others = _within(peer.address, bound.proxy_protocol_from)
                exempt = peer.trusted or speaks_for_others
                entered = probe is None and self._census.enter(self._seat, peer.address, exempt=exempt)
                if speaks_for_others and (entered or probe is not None):
                    balancer, peer = peer, await self._read_proxy_header(sock, peer)
                    if entered:
                        self._census.leave(self._seat, balancer.address, exempt=True)
                        exempt = peer.trusted
                        entered = self._census.enter(self._seat, peer.address, exempt=exempt)
                if not entered and probe is None:
                    raise Refused
                if bound.tls:
                    stream, info = await self._shake(sock, peer)
                else:
                    stream, info = SocketStream(sock, self._loop, self._deadlines), None
            finally:
                self._leave_handshake(asyncio.current_task())
                if probe is not None:
                    self._handover.met(probe)
            await self._run(bound, peer, stream, info)
        except (Refused, TimeoutError, OSError):
            pass  # scans, silence, resets: a line for each would let anybody fill the log
        finally:
            sock.close()
            if entered:
                self._census.leave(self._seat, peer.address, exempt=exempt)

    async def _run(self, bound: Bound, peer: Peer, stream: SocketStream, info: TlsInfo | None) -> None:
        application = self._behind_tls if bound.tls else self._behind_plain
        connection = ClientConnection(stream, peer, info, self._settings, application, self._loop)
        self._connections.add(connection)
        if self._draining:
            connection.drain()
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            if not connection.served and (alert := stream.peer_alert()) is not None:
                sni = info.sni if info is not None else None
                failure = tls.HandshakeFailed("refused_by_peer", alert=alert, sni=sni)
                self._log_handshake(peer.address, failure, info.handshake if info is not None else 0.0)

    # Before TLS

    async def _read_proxy_header(self, sock: socket.socket, peer: Peer) -> Peer:
        """The client that the header names. The header is demanded, and taken off the socket exactly."""
        deadline = self._loop.time() + self._timeouts.proxy_protocol
        with Readiness(sock, self._loop, self._deadlines, deadline) as readiness:
            seen = 0
            while True:
                try:
                    data = sock.recv(proxy_protocol.LIMIT, socket.MSG_PEEK)
                except BlockingIOError:
                    await readiness.readable()
                    continue
                if len(data) <= seen:
                    raise Refused
                seen = len(data)
                try:
                    header = proxy_protocol.parse(data)
                except proxy_protocol.ProxyProtocolError as error:
                    data_of = {"peer": peer.address, "why": str(error)}
                    logger.warning("bad PROXY header", extra={"data": data_of})
                    raise Refused from None
                if header is not None:
                    sock.recv(header.length)
                    break
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)
                await readiness.readable()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        if header.source is None:
            return peer
        address, port = header.source
        return Peer(address, port, peer.local_port, _within(address, self._trusted))

    async def _shake(self, sock: socket.socket, peer: Peer) -> tuple[SocketStream, TlsInfo]:
        """Raises Refused when no TLS connection came about; TimeoutError, OSError."""
        started = monotonic()
        try:
            stream = await tls.accept(
                sock, self._context, self._loop, self._deadlines, self._loop.time() + self._handshake_patience
            )
        except tls.PlainHttp:
            await self._answer_plain_http(sock, peer, started)
            raise Refused from None
        except tls.HandshakeFailed as error:
            if error.alert is not None:
                self._log_handshake(peer.address, error, monotonic() - started)
            raise Refused from None
        secured = stream.tls
        assert isinstance(secured, tls.Accepted)
        served = secured.served
        cipher = secured.cipher()
        return stream, TlsInfo(
            version=secured.version() or "",
            cipher=cipher[0] if cipher else "",
            sni=secured.sni,
            resumed=secured.session_reused,
            handshake=monotonic() - secured.began,
            hsts=isinstance(served, Served) and served.hsts,
        )

    def _make_room(self) -> None:
        """At the cap on handshakes the oldest slow one ends; while none is slow, new ones wait in the queue.

        So a crowd that comes at once is only delayed, and clients that say nothing keep nobody out.
        """
        now = self._loop.time()
        while len(self._shaking) >= self._handshake_limit:
            task, since = next(iter(self._shaking.items()))
            if now - since < SLOW_HANDSHAKE:
                if self._making_room is None:
                    self._making_room = self._loop.call_later(SLOW_HANDSHAKE - (now - since), self._room_due)
                break
            del self._shaking[task]
            task.cancel()
        self._accept_tls()

    def _room_due(self) -> None:
        self._making_room = None
        self._make_room()

    def _leave_handshake(self, task: asyncio.Task[None] | None) -> None:
        if task is not None and self._shaking.pop(task, None) is not None and not self._has_room:
            self._accept_tls()

    def _accept_tls(self) -> None:
        has_room = len(self._shaking) < self._handshake_limit
        if has_room == self._has_room:
            return
        self._has_room = has_room
        for listener in () if self._paused else self._tls_listeners:
            if has_room:
                listener.start()
            else:
                listener.pause()

    async def _answer_plain_http(self, sock: socket.socket, peer: Peer, started: float) -> None:
        error = errors.PlainHttp()
        record = Record(new_request_id(), peer, peer.address, started)
        record.status, fields, body = refusals.render(error, record.id, None)
        record.error, record.bytes_out = error.code, len(body)
        block = self._toward_client.block(fields, False, "", http_date)
        stream = SocketStream(sock, self._loop, self._deadlines)
        stream.write(
            b"%b%bConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (status_line(record.status), block, len(body), body)
        )
        record.total = monotonic() - started
        self._log(record)
        await stream.close(linger=True)

    # Ending

    def shed(self, patience: float = 0.0) -> int:
        """Descriptors or memory run out: close connections that wait for nothing but another request.

        `patience`: seconds that they get for a last one; without, those of which a part has arrived are
        spared while there are others. Returns how many.
        """
        idle = [connection for connection in self._connections if connection.is_idle][:SHED_AT_ONCE]
        if patience:
            for connection in idle:
                connection.drain(patience)
            return len(idle)
        chosen = [connection for connection in idle if connection.stream.is_quiet()] or idle
        for connection in chosen:
            connection.shed()
        return len(chosen)

    def pause(self) -> None:
        """Leave new connections in the queue until `resume`."""
        self._paused = True
        for listener in self._listeners:
            listener.pause()

    def resume(self) -> None:
        self._paused = False
        for listener in self._listeners:
            if self._has_room or listener not in self._tls_listeners:
                listener.start()

    def stop(self) -> None:
        """Accept no more."""
        for listener in self._listeners:
            listener.stop()

    async def drain(self, cut: asyncio.Event, patience: float) -> int:
        """Accept no more, answer what is under way; at `cut` end the rest.

        `patience`: seconds that idle connections get for a last request. Returns how many connections had
        to be ended.
        """
        self._draining = True
        self.stop()
        if not self._tasks:
            self._empty.set()
        for connection in tuple(self._connections):
            connection.drain(patience)
        ends = {self._loop.create_task(event.wait()) for event in (self._empty, cut)}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        left = tuple(self._tasks)
        for connection in tuple(self._connections):
            connection.cut()
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=1.0)
        return len(left)


def _peer(address: Any, local_port: int, trusted: Sequence[Network]) -> Peer:
    """The other end as the kernel names it; IPv4-mapped addresses are written as IPv4."""
    if not isinstance(address, tuple):
        return Peer("127.0.0.1", 0, local_port, trusted=False)  # a Unix socket passed with fd:N
    host, port = address[0], address[1]
    if ":" in host:
        host = host.partition("%")[0].removeprefix("::ffff:")
    return Peer(host, port, local_port, _within(host, trusted))


def _is_our_own(sock: socket.socket, peer: Peer) -> bool:
    """Whether the connection comes from the address it goes to: from this machine."""
    return bool(_peer(sock.getsockname(), 0, ()).address == peer.address)


def _within(address: str, networks: Sequence[Network]) -> bool:
    if not networks:
        return False
    parsed = ipaddress.ip_address(address)
    return any(parsed in network for network in networks)
