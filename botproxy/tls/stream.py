"""TLS over a non-blocking socket: the handshake, and the stream that follows.

OpenSSL works directly on the socket (no memory buffers between), which is
cheaper than the event loop's own TLS transport and keeps the real reason of a
failed handshake: the alert with which the peer refused our certificate. The
policy is the listener context's; which certificate is served is asked of
`Accepting.select` in the server-name callback.

Before: `server.listener`. After: `http.h1`, which sees a `SocketStream`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from botproxy.net.deadlines import Deadlines
from botproxy.net.readiness import Readiness
from botproxy.net.stream import READ_SIZE, SocketStream
from botproxy.tls.hello import BadHello, NotTls, read_hello

OUR_PROTOCOLS = frozenset({b"http/1.1", b"http/1.0"})
_NO_APPLICATION_PROTOCOL = 120  # RFC 7301 3.2; has no name in the ssl module before 3.13
_MAX_RECORD = 16384
_BULK = 8192
"""A received record at least this long is probably followed by another."""


class HandshakeFailed(Exception):
    """No TLS connection came about.

    `code` is a word for the log; `alert` the peer's reason, such as `unknown_ca`, when it gave one.
    """

    def __init__(self, code: str, *, alert: str | None = None, sni: str | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.alert = alert
        self.sni = sni


class PlainHttp(HandshakeFailed):
    """The client speaks HTTP without TLS on a TLS port."""

    def __init__(self) -> None:
        super().__init__("plain_http")


class Selected(Protocol):
    """The certificate chosen for one handshake."""

    @property
    def context(self) -> ssl.SSLContext: ...


class AcceptedSocket(ssl.SSLSocket):
    """A server-side TLS socket that remembers what its client asked for."""

    sni: str | None = None
    served: Selected | None = None
    foreign_protocols = False


def install(listener: ssl.SSLContext, select: Callable[[str | None], Selected | None]) -> None:
    """Have `select` choose the certificate of every handshake of `listener`.

    `select` gets the name as the client sent it (None without one) and returns None to refuse it.
    """

    def choose(sock: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> int | None:
        assert isinstance(sock, AcceptedSocket)
        sock.sni = name
        if sock.foreign_protocols:
            return _NO_APPLICATION_PROTOCOL
        served = select(name)
        if served is None:
            return int(ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)
        sock.served = served
        sock.context = served.context
        return None

    listener.sslsocket_class = AcceptedSocket
    # The stubs know the callback only with the base class's socket.
    listener.sni_callback = choose


class TlsStream(SocketStream):
    """A byte stream over an established TLS connection."""

    sock: ssl.SSLSocket
    _pending_error: OSError | None = None
    """Why the connection broke behind what was received; raised by the next receive."""

    def peer_alert(self) -> str | None:
        """The alert with which the peer broke the connection, if it did."""
        return alert_name(self.error) if isinstance(self.error, ssl.SSLError) else None

    def _finish_sending(self) -> None:
        """close_notify, then the end of the TCP stream; reading goes on (RFC 8446 6.1)."""
        try:
            self.sock.unwrap()
            # Both sides have said close_notify. The socket would now pass plain bytes: read no more.
            self._end()
        except ssl.SSLWantReadError:
            pass  # ours is sent, the peer's is still to come
        except ssl.SSLError:
            # OpenSSL takes data behind our close_notify for an error, and then reads no more.
            if not self._discarding:
                raise
        # SSLSocket.shutdown would forget the TLS state, and later bytes would pass undecrypted.
        socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def _recv(self) -> bytes | None:
        if self._discarding:
            return self._recv_sealed()
        if self._pending_error is not None:
            raise self._pending_error
        try:
            data = self.sock.read(READ_SIZE)
            if len(data) < _BULK:
                return data
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""
        return self._recv_more(data)

    def _recv_sealed(self) -> bytes | None:
        """Records as they came, for nobody will look into them."""
        try:
            return socket.socket.recv(self.sock, READ_SIZE)
        except BlockingIOError:
            return None

    def _recv_more(self, first: bytes) -> bytes:
        parts = [first]
        size = len(first)
        try:
            while size < READ_SIZE - _MAX_RECORD:
                parts.append(self.sock.read(_MAX_RECORD))
                size += len(parts[-1])
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass  # an end of stream is reported again by the next read
        except OSError as error:
            self._pending_error = error  # what came before it is still good
        return b"".join(parts)

    def _send(self, data: bytes | bytearray) -> int:
        size = len(data)
        if size <= _MAX_RECORD:
            try:
                return self.sock.write(data)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return 0
        total = 0
        with memoryview(data) as view:
            try:
                while total < size:  # OpenSSL takes one record at a time
                    total += self.sock.write(view[total:] if total else view)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                pass
        return total

    def is_quiet(self) -> bool:
        return super().is_quiet() and not self.sock.pending()


async def accept(
    sock: socket.socket,
    listener: ssl.SSLContext,
    loop: asyncio.AbstractEventLoop,
    deadlines: Deadlines,
    deadline: float,
) -> TlsStream:
    """The server side of a handshake on `sock`, which the caller closes when this raises.

    Raises HandshakeFailed; TimeoutError at `deadline`; OSError when the connection broke.
    """
    tls: ssl.SSLSocket | None = None
    try:
        with Readiness(sock, loop, deadlines, deadline) as readiness:
            foreign = await _wait_for_hello(sock, readiness)
            tls = listener.wrap_socket(
                sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
            )
            assert isinstance(tls, AcceptedSocket)
            tls.foreign_protocols = foreign
            await _shake(tls, readiness)
            return TlsStream(tls, loop, deadlines)  # takes the place of the one that waited
    except BaseException:
        if tls is not None:  # the socket is no longer the caller's
            tls.close()
        raise


async def connect(
    sock: socket.socket,
    context: ssl.SSLContext,
    server_name: str,
    loop: asyncio.AbstractEventLoop,
    deadlines: Deadlines,
    deadline: float,
) -> TlsStream:
    """The client side of a handshake on `sock`, verified as `context` says; closes it when this raises.

    Raises HandshakeFailed, TimeoutError at `deadline`, OSError when the connection broke.
    """
    tls = context.wrap_socket(
        sock, server_hostname=server_name, do_handshake_on_connect=False, suppress_ragged_eofs=False
    )
    try:
        with Readiness(tls, loop, deadlines, deadline) as readiness:
            await _shake(tls, readiness)
            return TlsStream(tls, loop, deadlines)
    except BaseException:
        tls.close()
        raise


def alert_name(error: ssl.SSLError) -> str | None:
    """`unknown_ca` from OpenSSL's `TLSV1_ALERT_UNKNOWN_CA`; None when the error is no alert."""
    _, found, name = (error.reason or "").partition("_ALERT_")
    return name.lower() if found else None


async def _wait_for_hello(sock: socket.socket, readiness: Readiness) -> bool:
    """Wait until the whole hello is in the kernel; True when it offers only foreign protocols.

    The hello is only looked at (MSG_PEEK). While it is incomplete the kernel is told how much is
    needed (SO_RCVLOWAT), because the part that is there already would wake us for ever.
    """
    needed = 1
    try:
        while True:
            try:
                data = sock.recv(max(needed, 2048), socket.MSG_PEEK)
            except BlockingIOError:
                await readiness.readable()
                continue
            if len(data) < needed:
                raise ConnectionResetError("the client left inside its hello")
            hello = read_hello(data)
            if not isinstance(hello, int):
                return bool(hello.protocols) and OUR_PROTOCOLS.isdisjoint(hello.protocols)
            if hello > len(data):
                needed = hello
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, needed)
                await readiness.readable()
    except NotTls:
        raise PlainHttp from None
    except BadHello:
        return False  # OpenSSL refuses it, with the right alert
    finally:
        if needed > 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def _shake(tls: ssl.SSLSocket, readiness: Readiness) -> None:
    while True:
        try:
            tls.do_handshake()
            return
        except ssl.SSLWantReadError:
            await readiness.readable()
        except ssl.SSLWantWriteError:
            await readiness.writable()
        except ssl.SSLError as error:
            raise _failure(error, tls) from error


def is_broken_off(error: ssl.SSLError) -> bool:
    """Whether the connection ended without a word; Python before 3.11.4 has no exception for that."""
    is_so = isinstance(error, ssl.SSLEOFError | ssl.SSLSyscallError)
    return is_so or error.reason == "UNEXPECTED_EOF_WHILE_READING"


def _failure(error: ssl.SSLError, tls: ssl.SSLSocket) -> HandshakeFailed:
    sni = getattr(tls, "sni", None)
    if alert := alert_name(error):
        return HandshakeFailed("refused_by_peer", alert=alert, sni=sni)
    if isinstance(error, ssl.SSLCertVerificationError):
        return HandshakeFailed("certificate_not_trusted")
    if is_broken_off(error):
        return HandshakeFailed("broken_off", sni=sni)
    return HandshakeFailed((error.reason or "tls_error").lower(), sni=sni)
