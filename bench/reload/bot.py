"""The bot behind every peer: a Unix socket, JSON answers, nothing to decide.

Each answer repeats the path, so that a client knows that it is the answer to its own
request, and names the process that connected (SO_PEERCRED), which is the worker that
served the client: no peer hands a client connection from one process to another.

Run `python -m bench.reload.bot PATH`; ends with SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 10.0
"""Seconds until it listens."""
_CREDENTIALS = struct.Struct("3i")
"""struct ucred of unix(7): process, user, group."""


@contextmanager
def running(path: Path, program: str = "bench.reload.bot") -> Iterator[None]:
    """A bot of its own process on the socket `path`: this one, or another module that is run like it."""
    process = subprocess.Popen([sys.executable, "-m", program, str(path)])
    try:
        deadline = time.monotonic() + PATIENCE
        while not _answers(path):
            assert process.poll() is None, "the bot ended"
            assert time.monotonic() < deadline, "the bot does not listen"
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait()


async def serve(path: str) -> None:
    """Answer on the socket `path`, open to every account: workers have given up root."""
    server = await asyncio.start_unix_server(_connected, path, backlog=512)
    os.chmod(path, 0o666)
    await server.serve_forever()


# Private


async def _connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    worker = _CREDENTIALS.unpack(credentials)[0]
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1].decode("ascii")
            body = json.dumps({"path": path, "worker": worker}).encode("ascii")
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the peer has no further request
    finally:
        writer.close()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


if __name__ == "__main__":
    try:
        asyncio.run(serve(sys.argv[1]))
    except KeyboardInterrupt:
        pass
