"""Connections of an attacker: cheap for it, and honest about what it put on the wire.

An attacker does not verify certificates and prepares its bytes beforehand. What it sent
is asked of the kernel (TCP_INFO): payload and TLS, and 52 bytes of IP and TCP header for
each segment, bare acknowledgements included.
"""

from __future__ import annotations

import fcntl
import select
import socket
import ssl
import struct
import sys
import termios
import time
from typing import Literal

from tests.wire import HelloFor

Depth = Literal["tcp", "hello", "tls"]
"""How far a connection goes: connected, hello sent, handshake done."""

PATIENCE = 5.0
"""Seconds for one step of a handshake."""
_TCP_INFO_SIZE = 248
_SEGMENTS_OUT = 136
_BYTES_SENT = 200
"""Offsets in struct tcp_info of linux/tcp.h."""
_HEADERS = 52
_LOOK_AGAIN = 0.01


def hostile_context() -> ssl.SSLContext:
    """A client that spends no time on what the server shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Dialer:
    """Makes connections of one depth to one port."""

    def __init__(self, port: int, depth: Depth) -> None:
        self._address = ("127.0.0.1", port)
        self._depth = depth
        self._context = hostile_context()
        self._hello = HelloFor(self._context).data

    def dial(self) -> socket.socket:
        """Raises OSError when the door is shut."""
        sock = socket.create_connection(self._address, timeout=PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self._depth == "hello":
                sock.sendall(self._hello)
            elif self._depth == "tls":
                return self._context.wrap_socket(
                    sock, server_hostname="localhost", suppress_ragged_eofs=False
                )
        except OSError:
            sock.close()
            raise
        return sock


def bytes_on_the_wire(sock: socket.socket) -> int:
    """What our side sent so far, headers included."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    (segments,) = struct.unpack_from("I", info, _SEGMENTS_OUT)
    (sent,) = struct.unpack_from("Q", info, _BYTES_SENT)
    return int(sent + _HEADERS * segments)


def pump(sock: socket.socket, data: bytes, until: float, *, leave: bool) -> bytes:
    """Send `data` and read at the same time, until the peer ends the connection; what came first.

    `leave`: done when the peer's kernel has everything; a close before that would take it back.
    """
    sock.setblocking(False)
    first = b""
    view = memoryview(data)
    while time.monotonic() < until:
        try:
            if view:
                view = view[sock.send(view) :]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass  # the kernel is full
        except OSError:
            view = view[:0]  # the peer takes nothing more; it may have said why
        if not view and leave and not _undelivered(sock):
            return first
        try:
            got = sock.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            poll = select.poll()
            poll.register(sock.fileno(), select.POLLIN | (select.POLLOUT if view else 0))
            # Of the last byte that arrives no event tells.
            patience = until - time.monotonic() if view or not leave else _LOOK_AGAIN
            poll.poll(max(0.0, patience) * 1000)
            continue
        except OSError:
            return first
        if not got:
            return first
        first = first or got[:64]
    return first


def _undelivered(sock: socket.socket) -> int:
    """Bytes that the peer's kernel has not acknowledged; none when the connection broke."""
    try:
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    return int.from_bytes(answer, sys.byteorder)
