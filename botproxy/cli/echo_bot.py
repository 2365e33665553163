"""The bot of `botproxy demo`: answers every request with what it saw of it, as JSON.

A program of its own, `python -m botproxy.cli.echo_bot FD PARENT`, which serves HTTP/1.1
in clear text on the listening socket it inherits. It keeps nothing, and it ends
with the process that started it, however that one ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import h11

from botproxy.server import privileges

_SHOWN = 300
"""Characters of a header value, or of the path; the rest is cut."""
_PATIENCE = 75.0
"""Seconds of silence after which a connection is closed."""
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def running() -> Iterator[int]:
    """Start the bot on a free port of 127.0.0.1; gives the port, stops the bot at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        descriptor = listener.fileno()
        bot = subprocess.Popen(
            [sys.executable, "-m", "botproxy.cli.echo_bot", str(descriptor), str(os.getpid())],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is not for it: requests in flight are answered while the demo drains.
        )
        port: int = listener.getsockname()[1]
    # From here on only the bot holds the socket, so that its end is seen as refused connections.
    try:
        yield port
    finally:
        bot.terminate()
        bot.wait()


def main(descriptor: int, parent: int) -> None:
    """Serve on the listening socket `descriptor` until `parent` ends or SIGTERM comes."""
    privileges.drop(privileges.worker_account(privileges.UNPRIVILEGED))
    # Only now: the kernel forgets it when the account changes.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        return
    asyncio.run(_serve(socket.socket(fileno=descriptor)))


# Private


async def _serve(listener: socket.socket) -> None:
    server = await asyncio.start_server(_converse, sock=listener)
    await server.serve_forever()


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection, one after the other."""
    connection = h11.Connection(h11.SERVER)
    try:
        while await _answer_one(connection, reader, writer):
            connection.start_next_cycle()
    except (OSError, TimeoutError, h11.RemoteProtocolError):
        pass  # The other side left or speaks something else; there is nobody to tell.
    finally:
        writer.close()


async def _answer_one(
    connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """Whether another request may follow."""
    request, length = None, 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                await _send(connection, writer, h11.InformationalResponse(status_code=100, headers=[]))
            async with asyncio.timeout(_PATIENCE):
                connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            length += len(event.data)
        else:
            break
    if request is None:  # The connection ended between two requests.
        return False
    body = json.dumps(_seen(request, length), indent=2).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    await _send(connection, writer, h11.Response(status_code=200, headers=headers))
    await _send(connection, writer, h11.Data(data=b"" if request.method == b"HEAD" else body))
    await _send(connection, writer, h11.EndOfMessage())
    return connection.our_state is h11.DONE and connection.their_state is h11.DONE


async def _send(connection: h11.Connection, writer: asyncio.StreamWriter, event: h11.Event) -> None:
    if data := connection.send(event):
        writer.write(data)
        async with asyncio.timeout(_PATIENCE):
            await writer.drain()


def _seen(request: h11.Request, length: int) -> dict[str, object]:
    headers: dict[str, str] = {}
    for name, value in request.headers.raw_items():
        key, shown = name.decode("ascii"), _shown(value)
        headers[key] = f"{headers[key]}, {shown}" if key in headers else shown
    return {
        "method": request.method.decode("ascii"),
        "path": _shown(request.target),
        "headers": headers,
        "body_bytes": length,
    }


def _shown(value: bytes) -> str:
    text = value.decode("latin-1")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
