"""The admin endpoint: HTTP on a Unix socket of mode 0600, which only the owner may use.

One request for each connection, without a body, answered in JSON; h11 is the parser. What
is answered is decided in `keeper.answers`. The supervisor binds the socket and keeps it,
so that questions wait while a keeper is replaced.

Before: `keeper.process`. Asked by `botproxy health`, `cert` and `tickets`, and by people with curl.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import h11

from botproxy.errors import ConfigError, Problem

DEADLINE = 5.0
"""Seconds for a request to arrive, and for its answer to leave."""
MAX_HEAD = 8 * 1024
MAX_PATH = 107
"""Bytes of a Unix socket's path (sun_path of Linux, less its NUL)."""


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


Answer = Callable[[str, str, Mapping[str, Sequence[str]]], Awaitable[tuple[int, dict[str, Any]]]]
"""Status and JSON object for a method, a path, and the values of each query parameter."""


class Service:
    """The answering of one admin socket."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._asked: set[asyncio.Task[None]] = set()
        self._silent: set[asyncio.StreamWriter] = set()
        """Connections on which nothing was asked yet."""

    async def begin(self, sock: socket.socket) -> None:
        # Not start_unix_server, which since Python 3.13 removes the path when it ends.
        self._server = await asyncio.start_server(self._connected, sock=sock)

    async def close(self) -> None:
        """Take no more questions; those that were asked get their answers."""
        self._server.close()
        for writer in self._silent:
            writer.close()
        if self._asked:
            await asyncio.wait(self._asked, timeout=DEADLINE)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)
        self._silent.add(writer)
        try:
            if data := await _exchange(reader, self._answer, partial(self._silent.discard, writer)):
                writer.write(data)
                async with asyncio.timeout(DEADLINE):
                    await writer.drain()
        except (TimeoutError, OSError):
            pass  # a client that is slow or gone gets nothing
        finally:
            self._silent.discard(writer)
            writer.close()


async def serve(sock: socket.socket, answer: Answer) -> Service:
    """Answer on the listening socket `sock`, which the returned service takes over."""
    service = Service(answer)
    await service.begin(sock)
    return service


# Private


async def _exchange(reader: asyncio.StreamReader, answer: Answer, asked: Callable[[], None]) -> bytes:
    """The bytes to answer with; none when the client left without a request. `asked` is called in between."""
    connection = h11.Connection(h11.SERVER)
    body: dict[str, Any]
    head = False
    received = 0
    try:
        async with asyncio.timeout(DEADLINE):
            while (event := connection.next_event()) is h11.NEED_DATA and received <= MAX_HEAD:
                data = await reader.read(MAX_HEAD)
                received += len(data)
                connection.receive_data(data)
        asked()
        if received > MAX_HEAD:  # h11 limits only heads that it has not got whole
            status, body = 431, {"error": "the request head is too large"}
        elif isinstance(event, h11.Request):
            head = event.method == b"HEAD"
            status, body = await _answer(event, answer)
        else:
            return b""
    except h11.RemoteProtocolError:
        status, body = 400, {"error": "the request is not valid HTTP/1.1"}
    allow = body.pop("allow", None)
    content = json.dumps(body).encode("ascii") + b"\n"
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(content))),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-store"),
        ("Connection", "close"),
    ]
    if allow is not None:
        headers.append(("Allow", allow))
    sent = connection.send(h11.Response(status_code=status, headers=headers)) or b""
    return sent if head else sent + (connection.send(h11.Data(data=content)) or b"")


async def _answer(request: h11.Request, answer: Answer) -> tuple[int, dict[str, Any]]:
    fields = dict(request.headers)
    if b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0":
        return 400, {"error": "a request without a body was expected"}
    path, _, query = request.target.decode("ascii").partition("?")
    method = "GET" if request.method == b"HEAD" else request.method.decode("ascii")
    try:
        parameters = parse_qs(query, keep_blank_values=True, max_num_fields=100)
    except ValueError:
        return 400, {"error": "the query has too many parameters"}
    return await answer(method, path, parameters)


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
