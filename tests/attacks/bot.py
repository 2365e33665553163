"""Bots of a process of their own: good ones, and those that attack the proxy themselves.

The path of a request says what to do with it:

    /           read the body, answer `ok`
    /large      a gigabyte
    /interim    interim responses without end
    /head       a head without end
    /fields     a head of 40 000 fields
    /chunks     a body of 200 000 chunks of one byte
    /socket     a WebSocket that swallows what comes
    /sent       how many bytes of attack were sent so far

Run `python -m tests.attacks.bot PATH`; ends with SIGTERM.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from tests.wire import OK, PATIENCE, Wire, get

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@dataclass(frozen=True)
class RunningBot:
    """A bot on a Unix socket."""

    pid: int
    path: Path

    @property
    def url(self) -> str:
        return f"unix:{self.path}"

    def sent(self) -> int:
        """Bytes of attack."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        with Wire(sock) as wire:
            return int(wire.request(get("/sent")).body)


@contextmanager
def running_bot(path: Path) -> Iterator[RunningBot]:
    process = subprocess.Popen([sys.executable, "-m", "tests.attacks.bot", str(path)])
    try:
        deadline = time.monotonic() + PATIENCE
        while not _answers(path):
            assert process.poll() is None, "the bot ended"
            assert time.monotonic() < deadline, "the bot does not listen"
            time.sleep(0.02)
        yield RunningBot(process.pid, path)
    finally:
        process.terminate()
        process.wait()


class Server:
    """All connections of one bot."""

    def __init__(self) -> None:
        self.sent = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the proxy has no further request, or cut us off
        finally:
            writer.close()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = head.split(b" ", 2)[1]
        if path == b"/socket":
            await _swallow(head, reader, writer)
        elif path == b"/sent":
            text = b"%d" % self.sent
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
        elif path in _ATTACKS:
            for piece in _ATTACKS[path]():
                writer.write(piece)
                self.sent += len(piece)
                await writer.drain()
        else:
            await _read_body(head, reader)
            writer.write(OK)
        await writer.drain()


async def serve(path: str) -> None:
    server = await asyncio.start_unix_server(Server().connected, path, backlog=1024)
    os.chmod(path, 0o666)  # workers have given up root
    await server.serve_forever()


# Private


def _large() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
    yield from repeat(bytes(65536), 1_000_000_000 // 65536)


def _interim() -> Iterator[bytes]:
    return repeat(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 100)


def _head() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nX-Endless: "
    yield from repeat(b"x" * 16384)


def _fields() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    yield b"a:\r\n" * 40_000
    yield b"Content-Length: 0\r\n\r\n"


def _chunks() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    yield from repeat(b"1\r\nx\r\n" * 2000, 100)
    yield b"0\r\n\r\n"


_ATTACKS = {
    b"/large": _large,
    b"/interim": _interim,
    b"/head": _head,
    b"/fields": _fields,
    b"/chunks": _chunks,
}


async def _swallow(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    key = _value(head, b"sec-websocket-key")
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
    )
    while await reader.read(65536):
        pass
    await asyncio.sleep(3600)  # its own end stays open: it is up to the proxy


async def _read_body(head: bytes, reader: asyncio.StreamReader) -> None:
    if length := _value(head, b"content-length"):
        left = int(length)
        while left:
            data = await reader.read(min(left, 65536))
            if not data:
                raise ConnectionResetError("the proxy broke off")
            left -= len(data)
    elif _value(head, b"transfer-encoding"):
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")


def _value(head: bytes, name: bytes) -> bytes:
    for line in head.split(b"\r\n"):
        found, _, value = line.partition(b":")
        if found.lower() == name:
            return value.strip()
    return b""


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


if __name__ == "__main__":
    try:
        asyncio.run(serve(sys.argv[1]))
    except KeyboardInterrupt:
        pass
