"""The bot behind every proxy: as fast as Python allows, because it shares a core with the load.

It answers what `payload` says, over HTTP/1.1 with kept connections, and refuses a request
whose body is not the agreed one, so that a proxy that changes bytes fails. It understands
what the peers here send, not all of HTTP.

Run `python -m bench.compare.bot PORT`; ends with SIGTERM.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import sys
from collections.abc import Generator
from functools import partial

from bench.compare import payload
from bench.compare.loop import READ, WRITE, Loop, Steps

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_KEY = re.compile(rb"\r\nsec-websocket-key: *(\S+)\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_BAD = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
_RECEIVED = 1 << 18


def serve(port: int) -> None:
    """Answer on 127.0.0.1:`port` for ever."""
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    loop = Loop()
    loop.start(listener, _accept(listener, loop), lambda _: listener.close())
    while True:
        loop.turn(-1)


# Private


def _ended(sock: socket.socket, _: Exception | None) -> None:
    """Errors are not looked at: a proxy that breaks a connection fails its client, which counts."""
    sock.close()


def _accept(listener: socket.socket, loop: Loop) -> Steps:
    while True:
        yield READ
        try:
            while True:
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                loop.start(sock, _connection(sock), partial(_ended, sock))
        except BlockingIOError:
            pass


def _connection(sock: socket.socket) -> Steps:
    data = b""
    while True:
        while (end := data.find(b"\r\n\r\n")) < 0:
            yield READ
            more = sock.recv(_RECEIVED)
            if not more:
                return
            data += more
        head, data = data[: end + 2], data[end + 4 :]
        path = head[: head.index(b"\r")].split(b" ")[1].decode("ascii")
        if path == payload.SOCKET:
            yield from _socket(sock, head)
            return
        if path == payload.DOWNLOAD:
            yield from _send(sock, _OK % payload.LARGE_BYTES)
            for _ in range(payload.LARGE):
                yield from _send(sock, payload.BLOCK)
        elif head.startswith(b"GET "):
            body = payload.answer(path)
            yield from _send(sock, _OK % len(body) + body)
        else:
            data, right = yield from _body(sock, head, data, path)
            body = payload.answer(path)
            yield from _send(sock, _OK % len(body) + body if right else _BAD)
        if _CLOSE.search(head):
            return


def _body(
    sock: socket.socket, head: bytes, data: bytes, path: str
) -> Generator[int, None, tuple[bytes, bool]]:
    """What comes after the body, and whether it was what it must be."""
    large = path == payload.UPLOAD
    length = _LENGTH.search(head)
    left = int(length[1]) if length else 0
    right, got = left == (payload.LARGE_BYTES if large else len(payload.WEBHOOK)), 0
    while left:
        if not data:
            yield READ
            data = sock.recv(_RECEIVED)
            if not data:
                raise ConnectionResetError("in the middle of a body")
        part, data = data[:left], data[left:]
        expected = payload.is_pattern(part, got) if large else payload.WEBHOOK.startswith(part, got)
        right, got, left = right and expected, got + len(part), left - len(part)
    return data, right


def _send(sock: socket.socket, data: bytes) -> Steps:
    sent = 0
    while True:
        try:
            sent += sock.send(memoryview(data)[sent:])
        except BlockingIOError:
            pass
        if sent == len(data):
            return
        yield WRITE


def _socket(sock: socket.socket, head: bytes) -> Steps:
    key = (_KEY.search(head) or [b"", b""])[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key).digest())
    yield from _send(
        sock,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept,
    )
    data = b""
    size = len(payload.FRAME_FROM_CLIENT)
    while True:
        yield READ
        more = sock.recv(_RECEIVED)
        if not more:
            return
        data += more
        while len(data) >= size:
            frame, data = data[:size], data[size:]
            if _unmasked(frame) != payload.TEXT:
                return
            yield from _send(sock, payload.FRAME_FROM_BOT)


def _unmasked(frame: bytes) -> bytes:
    """Text of a short masked frame; a proxy may have masked it anew."""
    if frame == payload.FRAME_FROM_CLIENT:
        return payload.TEXT
    mask = frame[2:6]
    return bytes(byte ^ mask[i % 4] for i, byte in enumerate(frame[6:]))


if __name__ == "__main__":
    try:
        serve(int(sys.argv[1]))
    except KeyboardInterrupt:
        pass
