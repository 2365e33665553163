"""The admin endpoint: two questions over HTTP on a Unix socket of mode 0600.

`GET /-/live` is answered as long as the keeper runs, `GET /-/ready` with 200 when every
worker serves the current certificates, otherwise 503. It reads one request per
connection, only GET and HEAD, changes nothing and shows no secret. h11 is the parser.

Before: `keeper.process`. Asked by `botproxy health` and by people with curl.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import h11

from botproxy.errors import ConfigError, Problem

DEADLINE = 5.0
"""Seconds for a whole connection."""
MAX_HEAD = 8 * 1024
MAX_PATH = 107
"""Bytes of a Unix socket's path (sun_path of Linux, less its NUL)."""


@dataclass(frozen=True, slots=True)
class WorkerReport:
    slot: int
    pid: int | None
    generation: int | None


@dataclass(frozen=True, slots=True)
class CertificateReport:
    names: tuple[str, ...]
    not_after: str
    """ISO 8601, UTC."""
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Report:
    """What `/-/ready` answers."""

    ready: bool
    workers: tuple[WorkerReport, ...]
    certificates: tuple[CertificateReport, ...]


def bind(path: Path) -> socket.socket:
    """A listening socket at `path`; a dead one that lies there is replaced.

    Raises ConfigError when the path cannot be used or another botproxy answers there.
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise _wrong(
            f'the path "{path}" is longer than the {MAX_PATH} bytes that Unix sockets allow',
            "set a shorter one: admin: unix:/run/botproxy/admin.sock",
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode is right from the first moment: between bind and chmod anybody could connect.
    umask = os.umask(0o177)
    try:
        _remove_stale(path)
        sock.bind(os.fsencode(path))
        sock.listen(16)
    except OSError as error:
        sock.close()
        raise _wrong(
            f'the admin socket "{path}" cannot be made ({error.strerror})',
            "make its directory, set admin to another path, or admin: off",
        ) from None
    except ConfigError:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return sock


async def serve(sock: socket.socket, report: Callable[[], Report]) -> asyncio.Server:
    """Answer on the listening socket `sock`, which the returned server takes over."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                if answer := await _exchange(reader, report):
                    writer.write(answer)
                    await writer.drain()
        except (TimeoutError, OSError):
            pass  # a client that is slow or gone gets nothing
        finally:
            writer.close()

    return await asyncio.start_unix_server(connected, sock=sock)


# Private


async def _exchange(reader: asyncio.StreamReader, report: Callable[[], Report]) -> bytes:
    """The bytes to answer with; none when the client left without a request."""
    connection = h11.Connection(h11.SERVER)
    body: dict[str, object]
    head = False
    received = 0
    try:
        while (event := connection.next_event()) is h11.NEED_DATA and received <= MAX_HEAD:
            data = await reader.read(MAX_HEAD)
            received += len(data)
            connection.receive_data(data)
        if received > MAX_HEAD:  # h11 limits only heads that it has not got whole
            status, body = 431, {"error": "the request head is too large"}
        elif isinstance(event, h11.Request):
            head = event.method == b"HEAD"
            status, body = _answer(event, report)
        else:
            return b""
    except h11.RemoteProtocolError:
        status, body = 400, {"error": "the request is not valid HTTP/1.1"}
    content = json.dumps(body).encode("ascii") + b"\n"
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(content))),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-store"),
        ("Connection", "close"),
    ]
    if status == 405:
        headers.append(("Allow", "GET, HEAD"))
    answer = connection.send(h11.Response(status_code=status, headers=headers)) or b""
    return answer if head else answer + (connection.send(h11.Data(data=content)) or b"")


def _answer(request: h11.Request, report: Callable[[], Report]) -> tuple[int, dict[str, object]]:
    if request.method not in (b"GET", b"HEAD"):
        return 405, {"error": "only GET and HEAD are answered"}
    if {name for name, _ in request.headers} & {b"content-length", b"transfer-encoding"}:
        return 400, {"error": "a request without a body was expected"}
    if request.target == b"/-/live":
        return 200, {"live": True}
    if request.target == b"/-/ready":
        now = report()
        return (200 if now.ready else 503), asdict(now)
    return 404, {"error": "known are /-/live and /-/ready"}


def _remove_stale(path: Path) -> None:
    """Remove a socket at `path` that nobody answers on. Raises ConfigError for anything else there."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _wrong(f'"{path}" exists and is no socket', "set admin to another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(os.fsencode(path))
    if result != errno.ECONNREFUSED:
        raise _wrong(
            f'another process answers on "{path}"',
            "stop the botproxy that runs already, or set admin (or state_dir) to another path",
        )
    path.unlink()


def _wrong(says: str, hint: str) -> ConfigError:
    return ConfigError([Problem(where="", path="admin", says=says, hint=hint)])
