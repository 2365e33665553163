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
from time import monotonic
from typing import Any

from botproxy.config.schema import Config, Network
from botproxy.http.exchange import Settings, status_line
from botproxy.http.h1 import Application, ClientConnection
from botproxy.model import Peer, Record, TlsInfo, make_field
from botproxy.net import proxy_protocol
from botproxy.net.deadlines import Deadlines
from botproxy.net.readiness import Readiness
from botproxy.net.stream import SocketStream
from botproxy.policy.headers import TowardClient
from botproxy.server.census import Census
from botproxy.server.listener import Listener
from botproxy.server.sockets import Bound
from botproxy.tls import stream as tls
from botproxy.tls.context import Served

logger = logging.getLogger(__name__)

SHED_AT_ONCE = 64
"""Idle connections closed when descriptors run out."""
_PLAIN_HTTP = b"botproxy: this port speaks TLS; use an https:// address\n"
_PLAIN_HTTP_FIELDS = [
    make_field(b"Content-Type", b"text/plain; charset=utf-8"),
    make_field(b"Cache-Control", b"no-store"),
]


class Refused(Exception):
    """The connection ends before it is one; nobody is told more."""


class Reception:
    """All client connections of one worker."""

    def __init__(
        self,
        config: Config,
        slot: int,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
        census: Census,
        context: ssl.SSLContext,
        applications: tuple[Application, Application],
        log: Callable[[Record], None],
        log_handshake: Callable[[str, tls.HandshakeFailed, float], None],
    ) -> None:
        """`applications`: behind TLS listeners, behind plain ones."""
        self._slot = slot
        self._loop = loop
        self._deadlines = deadlines
        self._census = census
        self._context = context
        self._behind_tls, self._behind_plain = applications
        self._log = log
        self._log_handshake = log_handshake
        self._timeouts = config.timeouts
        self._trusted = config.trusted_proxies
        self._toward_client = TowardClient(config)
        self._handshake_limit = config.limits.handshakes
        self._settings = Settings.of(config.limits, config.timeouts)
        self._listeners: list[Listener] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[ClientConnection] = set()
        self._handshakes = 0
        self._draining = False
        self.refused = 0
        """Connections closed at once because of a cap."""

    # Beginning

    def listen(self, bounds: Sequence[Bound]) -> None:
        """Begin to accept on `bounds`, which belong to this from now on."""
        for bound in bounds:

            def arrive(sock: socket.socket, address: Any, bound: Bound = bound) -> None:
                self._arrive(bound, sock, address)

            listener = Listener(bound.sock, self._loop, arrive, self._shed)
            self._listeners.append(listener)
            listener.start()

    def _arrive(self, bound: Bound, sock: socket.socket, address: Any) -> None:
        if bound.tls:
            self._count_handshake(1)  # from here on, so that one burst of accepts cannot pass the cap
        task = self._loop.create_task(self._serve(bound, sock, address))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("connection failed", exc_info=error)

    async def _serve(self, bound: Bound, sock: socket.socket, address: Any) -> None:
        peer = _peer(address, bound.port, self._trusted)
        exempt = peer.trusted
        entered = False
        try:
            try:
                if _within(peer.address, bound.proxy_protocol_from):
                    peer = await self._read_proxy_header(sock, peer)
                exempt = peer.trusted
                entered = self._census.enter(self._slot, peer.address, exempt=exempt)
                if not entered:
                    self.refused += 1
                    raise Refused
                stream, info = await self._secure(bound, sock, peer)
            finally:
                if bound.tls:
                    self._count_handshake(-1)
            await self._run(bound, peer, stream, info)
        except (Refused, TimeoutError, OSError):
            pass  # scans, silence, resets: a line for each would let anybody fill the log
        finally:
            sock.close()
            if entered:
                self._census.leave(self._slot, peer.address, exempt=exempt)

    async def _secure(
        self, bound: Bound, sock: socket.socket, peer: Peer
    ) -> tuple[SocketStream, TlsInfo | None]:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if bound.tls:
            return await self._shake(sock, peer)
        return SocketStream(sock, self._loop, self._deadlines), None

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
                sock, self._context, self._loop, self._deadlines, self._loop.time() + self._timeouts.handshake
            )
        except tls.PlainHttp:
            await self._answer_plain_http(sock, peer, started)
            raise Refused from None
        except tls.HandshakeFailed as error:
            if error.alert is not None:
                self._log_handshake(peer.address, error, monotonic() - started)
            raise Refused from None
        secured = stream.sock
        assert isinstance(secured, tls.AcceptedSocket)
        served = secured.served
        cipher = secured.cipher()
        return stream, TlsInfo(
            version=secured.version() or "",
            cipher=cipher[0] if cipher else "",
            sni=secured.sni,
            resumed=bool(secured.session_reused),
            handshake=monotonic() - started,
            hsts=isinstance(served, Served) and served.hsts,
        )

    def _count_handshake(self, change: int) -> None:
        """Above the cap new connections wait in the kernel's queue: handshakes are the expensive part."""
        was_full = self._handshakes >= self._handshake_limit
        self._handshakes += change
        is_full = self._handshakes >= self._handshake_limit
        if is_full != was_full:
            for listener in self._listeners:
                if is_full:
                    listener.pause()
                else:
                    listener.start()

    async def _answer_plain_http(self, sock: socket.socket, peer: Peer, started: float) -> None:
        stream = SocketStream(sock, self._loop, self._deadlines)
        block = self._toward_client(_PLAIN_HTTP_FIELDS, tls_hsts=False, host="")
        stream.write(
            b"%b%bConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (status_line(400), block, len(_PLAIN_HTTP), _PLAIN_HTTP)
        )
        record = Record(id="", peer=peer, client=peer.address, started=started)
        record.status, record.error = 400, "plain_http"
        record.total = monotonic() - started
        self._log(record)
        await stream.close(linger=True)

    # Ending

    def _shed(self) -> None:
        """Descriptors ran out: close connections that wait for nothing but another request."""
        idle = [connection for connection in self._connections if connection.is_idle]
        for connection in idle[:SHED_AT_ONCE]:
            connection.drain()

    async def drain(self, patience: float, cut: asyncio.Event) -> int:
        """Accept no more, answer what is under way; after `patience` seconds, or at `cut`, end the rest.

        Returns how many connections had to be ended.
        """
        self._draining = True
        for listener in self._listeners:
            listener.stop()
        for connection in tuple(self._connections):
            connection.drain()
        deadline = self._loop.time() + patience
        cutting = self._loop.create_task(cut.wait())
        try:
            while self._tasks and not cut.is_set() and self._loop.time() < deadline:
                await asyncio.wait(
                    {*self._tasks, cutting},
                    timeout=max(0.0, deadline - self._loop.time()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            cutting.cancel()
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
    host = str(address[0]).partition("%")[0]
    if host.startswith("::ffff:"):
        host = host.removeprefix("::ffff:")
    return Peer(host, int(address[1]), local_port, _within(host, trusted))


def _within(address: str, networks: Sequence[Network]) -> bool:
    if not networks:
        return False
    parsed = ipaddress.ip_address(address)
    return any(parsed in network for network in networks)
