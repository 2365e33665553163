"""TLS over a non-blocking socket: the handshake, and the stream that follows.

OpenSSL works between two buffers in memory, and what goes over the socket goes in as few
system calls as there are turns: one to receive, one to send. It is cheaper than the event
loop's own TLS transport, and keeps the real reason of a failed handshake: the alert with
which the peer refused our certificate. The policy is the listener context's; which
certificate is served is asked of `install`'s `select` in the server-name callback.

Before: `server.listener`. After: `http.h1`, which sees a `SocketStream`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from botproxy.net.deadlines import Deadlines
from botproxy.net.stream import SocketStream, StreamTimeout
from botproxy.tls.hello import HELLO_LIMIT, is_handshake, offers_only_others

_NO_APPLICATION_PROTOCOL = 120  # RFC 7301 3.2; has no name in the ssl module before 3.13
_MAX_RECORD = 16384
UNTAKEN_LIMIT = 4096
"""Bytes that a peer may have us answer, below HTTP, while it takes nothing; 150 changes of keys."""


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


class Accepted(ssl.SSLObject):
    """The server's side of a connection, which remembers what its client asked for."""

    sni: str | None = None
    served: Selected | None = None
    began = 0.0
    """Monotonic seconds, at the first byte of the hello."""
    hello: list[bytes] | None = None
    """What came until the hello was complete, in pieces."""
    received = 0

    def hear(self, data: bytes) -> None:
        """The client sent `data`. Raises HandshakeFailed when that is more than a handshake needs."""
        if not self.received:
            self.began, self.hello = monotonic(), []
        self.received += len(data)
        if self.received > HELLO_LIMIT:
            raise HandshakeFailed("handshake_too_long", sni=self.sni)
        if self.hello is not None:
            self.hello.append(data)


def install(listener: ssl.SSLContext, select: Callable[[str | None], Selected | None]) -> None:
    """Have `select` choose the certificate of every handshake of `listener`.

    `select` gets the name as the client sent it (None without one) and returns None to refuse it.
    """

    def choose(tls: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> int | None:
        assert isinstance(tls, Accepted)
        tls.sni = name
        if tls.hello is not None:  # else it is the second one, which a client was asked for
            hello, tls.hello = b"".join(tls.hello), None
            if offers_only_others(hello):
                return _NO_APPLICATION_PROTOCOL
        served = select(name)
        if served is None:
            return int(ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)
        tls.served = served
        tls.context = served.context
        return None

    listener.sslobject_class = Accepted
    # The stubs know the callback only with a socket.
    listener.sni_callback = choose


class TlsStream(SocketStream):
    """A byte stream over TLS. Until `shake` is over, it reads what comes as it comes."""

    _header = b""
    """What has come of a record whose length is still to come; else that is in `_missing`."""
    _untaken = 0
    """Bytes of `_send_unasked` since the peer had taken everything."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop, deadlines: Deadlines) -> None:
        super().__init__(sock, loop, deadlines)
        self._established = False
        self._missing = 0
        """Bytes to come of a record whose beginning is neither in the kernel nor in the inbox any more."""
        self._verdict: OSError | bool = False
        """What stands behind the bytes received last: an orderly end (True), or why the connection broke."""

    def _begin(self, context: ssl.SSLContext, server_name: str | None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )

    def peer_alert(self) -> str | None:
        """The alert with which the peer broke the connection, if it did."""
        return alert_name(self.error) if isinstance(self.error, ssl.SSLError) else None

    async def shake(self, context: ssl.SSLContext, server_name: str | None, deadline: float) -> None:
        """The handshake. `server_name`: that of the peer; None where the peer is the client.

        Raises HandshakeFailed, PlainHttp; StreamTimeout at `deadline`, StreamClosed.
        """
        if server_name is None:
            # A client that says nothing costs nothing of OpenSSL.
            data = await self.read(deadline)
            if data:
                if not is_handshake(data):
                    raise PlainHttp
                self._begin(context, None)
            complete = self._take(data)
        else:
            self._begin(context, server_name)
            complete = self._advance()
        while not complete:
            complete = self._take(await self.read(deadline))
        self._established = True
        behind = self._incoming.read() + self.take()
        # The last flight of a server of TLS 1.3 holds nothing but tickets: they go with its first answer,
        # which spares a packet, if more has come. Else at once: a client with Nagle's algorithm that waits
        # for somebody to acknowledge its own last flight would keep its request back until then.
        if not behind or server_name is not None or self.tls.version() != "TLSv1.3":
            self._send_sealed()
        if behind or self.ended:
            self._take_behind(behind)

    def _take_behind(self, raw: bytes) -> None:
        """`raw` came behind the handshake, before anybody knew that it was over; and perhaps the end."""
        self._incoming.write(raw)
        if self.ended:  # of TCP; whether it is one of TLS shows now
            self.ended = False
            self._incoming.write_eof()
        self.unread(self._unseal(raw))
        self._settle()

    def check(self, now: float) -> None:
        if self._established and self._outgoing.pending:  # tickets, and no answer until now
            self._send_sealed()
        SocketStream.check(self, now)

    def _take(self, data: bytes) -> bool:
        """The peer sent `data`; whether the handshake is complete."""
        if not data:
            raise HandshakeFailed("broken_off")
        if isinstance(self.tls, Accepted):
            self.tls.hear(data)
        self._incoming.write(data)
        return self._advance()

    def _advance(self) -> bool:
        """Go on with the handshake; whether it is complete."""
        try:
            self.tls.do_handshake()
            return True
        except ssl.SSLWantReadError:
            self._send_sealed()
            return False
        except ssl.SSLError as error:
            self._send_sealed()  # our alert
            raise _failure(error, self.tls) from error

    # What the peer sends

    def is_quiet(self) -> bool:
        return not self._missing and not self._header and SocketStream.is_quiet(self)

    def _on_readable(self) -> None:
        SocketStream._on_readable(self)  # cheaper than super(), and on the way of every byte
        if self._verdict:
            self._settle()

    def _settle(self) -> None:
        """Act on what stood behind the bytes that are delivered now."""
        verdict, self._verdict = self._verdict, False
        if isinstance(verdict, OSError):
            self._break(verdict)
        elif verdict:
            self._end()

    def _recv(self) -> bytes | None:
        raw = SocketStream._recv(self)
        if raw is None or self._discarding or not self._established:
            return raw
        if raw:
            self._incoming.write(raw)
        else:
            self._incoming.write_eof()
        return self._unseal(raw) or None

    def _unseal(self, raw: bytes) -> bytes:
        """The content of all complete records that have arrived, with `raw` as the last of their bytes."""
        incoming, outgoing, read = self._incoming, self._outgoing, self.tls.read
        waiting = outgoing.pending  # tickets, which nobody is in a hurry for
        content = b""
        try:
            content = piece = read(_MAX_RECORD)
            while piece and incoming.pending:
                piece = read(_MAX_RECORD)
                content += piece
            if not piece:
                self._verdict = True  # close_notify
            elif self._missing or self._header:
                self._missing, self._header = 0, b""
        except ssl.SSLWantReadError:
            self._follow(raw)
        except ssl.SSLZeroReturnError:
            self._verdict = True  # the same, after ours
        except OSError as error:
            self._verdict = error
        if outgoing.pending != waiting:
            self._send_unasked(outgoing.pending)
        return content

    def _follow(self, raw: bytes) -> None:
        """Find the end of the record that `raw` ends in, which OpenSSL does not tell (RFC 8446 5.1)."""
        if self._header:
            raw, self._header = self._header + raw, b""
        at, last = self._missing, len(raw) - 5
        while at <= last:
            at += 5 + (raw[at + 3] << 8 | raw[at + 4])
        self._missing = at - len(raw)
        if self._missing < 0:
            self._missing, self._header = 0, raw[at:]

    def _send_unasked(self, size: int) -> None:
        """An alert of ours, or answers to changes of keys (RFC 8446 4.6.3), of which a peer may ask for any
        number and take none."""
        self._send_sealed()
        self._untaken = self._untaken + size if self._outbox else 0
        if self._untaken > UNTAKEN_LIMIT and not self._verdict:
            self._verdict = ConnectionAbortedError("it has its keys changed and takes no answer")

    # What the peer gets

    def write(self, data: bytes, flags: int = 0) -> None:
        if self._write_error is not None or self._closed:
            return
        try:
            if len(data) <= _MAX_RECORD:
                self.tls.write(data)
                sealed = self._outgoing.read()
            else:
                sealed = self._seal(data)
        except OSError as error:
            self._break_writing(error)
            return
        SocketStream.write(self, sealed, flags)

    def _seal(self, data: bytes) -> bytes:
        """Record by record, which takes a tenth longer: OpenSSL's buffer never shrinks, and this leaves it at
        22 KiB, not 48, for every client that stalls."""
        view, sealed = memoryview(data), []
        while view:
            view = view[self.tls.write(view[:_MAX_RECORD]) :]
            sealed.append(self._outgoing.read())
        return b"".join(sealed)

    def _send_sealed(self, flags: int = 0) -> None:
        if self._outgoing.pending:
            SocketStream.write(self, self._outgoing.read(), flags)

    def _say_end(self) -> None:
        """close_notify; reading goes on (RFC 8446 6.1)."""
        try:
            self.tls.unwrap()
            self._end()  # both sides have said it: what would come now is not sealed
        except ssl.SSLWantReadError:
            pass  # ours is written, the peer's is still to come
        except ssl.SSLError:
            if not self._discarding:
                raise
        self._send_sealed(socket.MSG_MORE)  # the end of TCP follows, in the same packet


async def accept(
    sock: socket.socket,
    listener: ssl.SSLContext,
    loop: asyncio.AbstractEventLoop,
    deadlines: Deadlines,
    deadline: float,
) -> TlsStream:
    """The server side of a handshake on `sock`, which is closed when this raises anything but PlainHttp.

    Raises HandshakeFailed; TimeoutError at `deadline`; OSError when the connection broke.
    """
    stream = TlsStream(sock, loop, deadlines)
    try:
        await stream.shake(listener, None, deadline)
    except PlainHttp:
        stream.release()
        raise
    except StreamTimeout:
        stream.shut()
        raise TimeoutError from None
    except BaseException:
        stream.shut()
        raise
    return stream


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
    stream = TlsStream(sock, loop, deadlines)
    try:
        await stream.shake(context, server_name, deadline)
    except StreamTimeout:
        stream.shut()
        raise TimeoutError from None
    except BaseException:
        stream.shut()
        raise
    return stream


def alert_name(error: ssl.SSLError) -> str | None:
    """`unknown_ca` from OpenSSL's `TLSV1_ALERT_UNKNOWN_CA`; None when the error is no alert."""
    _, found, name = (error.reason or "").partition("_ALERT_")
    return name.lower() if found else None


def is_broken_off(error: ssl.SSLError) -> bool:
    """Whether the connection ended without a word; Python before 3.11.4 has no exception for that."""
    is_so = isinstance(error, ssl.SSLEOFError | ssl.SSLSyscallError)
    return is_so or error.reason == "UNEXPECTED_EOF_WHILE_READING"


def _failure(error: ssl.SSLError, tls: ssl.SSLObject) -> HandshakeFailed:
    sni = getattr(tls, "sni", None)
    if alert := alert_name(error):
        return HandshakeFailed("refused_by_peer", alert=alert, sni=sni)
    if isinstance(error, ssl.SSLCertVerificationError):
        return HandshakeFailed("certificate_not_trusted")
    if is_broken_off(error):
        return HandshakeFailed("broken_off", sni=sni)
    return HandshakeFailed((error.reason or "tls_error").lower(), sni=sni)
