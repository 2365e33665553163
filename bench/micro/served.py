"""A whole botproxy, as it is installed: what each kind of work costs the worker that does it.

One worker, everything on that is on by default, the access log included. A handshake is a new connection
with one request on it; the rest is one more of it on a connection that is kept. Each is done n and 3n times,
and the difference divided, so that what is done once for both cancels out; all of it in one start (`parts`),
after as much again that is not counted. Two numbers of each: what is outside OpenSSL, and what is in it,
whose share of a handshake is so large that the other would be lost in it.
"""

from __future__ import annotations

import socket
import ssl
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.lineage import NAME, Lineage
from bench.micro import parts
from bench.micro.bot import DOWNLOAD, LARGE, MESSAGE, SOCKET
from bench.reload import bot, clients
from tests.harness import free_port

HANDSHAKES, REQUESTS, BODIES = 40, 300, 6
"""Of the shorter run; as many as it takes until a garbage collection more or less is lost in them.
Three times the requests are below `limits.requests_per_connection`."""
TIMEOUT = 60.0
CONFIG = """\
certificates:
  - {{ chain: {fullchain}, key: {privkey} }}
upstreams:
  bot: {{ url: "unix:{bot}" }}
listen: ["127.0.0.1:{port}"]
plain_listen: []
workers: 1
user: nobody
state_dir: {state}
log: {{ level: error }}
"""
UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a botproxy can be started, in front of a bot that runs."""

    directory: Path
    command: Sequence[str]
    caller: Caller


@contextmanager
def place() -> Iterator[Place]:
    """A new one, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="served-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # workers that have given up root must reach the bot's socket
        lineage, port, path = Lineage(directory), free_port(), directory / "bot.sock"
        file = directory / "botproxy.yaml"
        file.write_text(
            CONFIG.format(
                fullchain=lineage.fullchain,
                privkey=lineage.privkey,
                bot=path,
                port=port,
                state=directory / "state",
            )
        )
        command = (sys.executable, "-P", "-m", "botproxy", "serve", "--config", str(file))
        with bot.running(path, "bench.micro.bot"):
            yield Place(directory, command, Caller(port, lineage.ca))


def counted(environment: Mapping[str, str]) -> tuple[dict[str, float], dict[str, str]]:
    """Instructions of each, with botproxy from where `environment` leads; why others could not be counted."""
    with place() as here:
        done = parts.counted(
            here.command,
            here.caller.is_answered,
            _runs(here.caller),
            here.directory / "counts",
            environment,
        )
    return _differences(done), _failed(done)


class Caller:
    """A client that makes sure of every answer."""

    def __init__(self, port: int, ca: Path) -> None:
        self._port = port
        self._contexts = {version: clients.client(ca, version) for version in ("1.2", "1.3")}

    def is_answered(self) -> bool:
        try:
            self.visit(1)
        except OSError:
            return False
        return True

    def visit(self, count: int) -> None:
        for _ in range(count):
            with self._connect() as tls:
                _ask(tls, "/telegram")

    def visit_by_tls12(self, count: int) -> None:
        for _ in range(count):
            with self._connect("1.2") as tls:
                _ask(tls, "/telegram")

    def resume(self, count: int) -> None:
        """Each with the ticket of the one before, the first with that of a full handshake."""
        with self._connect() as tls:
            _ask(tls, "/telegram")
            session = tls.session
        for _ in range(count):
            with self._connect(session=session) as tls:
                _ask(tls, "/telegram")
                if not tls.session_reused:
                    raise ValueError("a full handshake where one was to be resumed")
                session = tls.session

    def request(self, count: int) -> None:
        with self._connect() as tls:
            for _ in range(count):
                _ask(tls, "/telegram")

    def upload(self, count: int) -> None:
        with self._connect() as tls:
            for _ in range(count):
                _ask(tls, "/telegram", LARGE)

    def download(self, count: int) -> None:
        with self._connect() as tls:
            for _ in range(count):
                tls.sendall(_head("GET", DOWNLOAD))
                if _answer(tls) != LARGE:
                    raise ValueError("another download")

    def echo(self, count: int) -> None:
        with self._connect() as tls:
            tls.sendall(_head("GET", SOCKET, *UPGRADE))
            if not (head := _until(tls, b"\r\n\r\n")).startswith(b"HTTP/1.1 101 "):
                raise ValueError(f"no WebSocket: {head[:80]!r}")
            for _ in range(count):
                tls.sendall(MESSAGE)
                said = b""
                while len(said) < len(MESSAGE):
                    said += _more(tls)
                if said != MESSAGE:
                    raise ValueError(f"another message: {said!r}")

    def _connect(self, version: str = "1.3", session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._contexts[version].wrap_socket(sock, server_hostname=NAME, session=session)


WORKS: dict[str, tuple[Callable[[Caller, int], None], int]] = {
    "served: handshake + request": (Caller.visit, HANDSHAKES),
    "served: resumed + request": (Caller.resume, HANDSHAKES),
    "served: TLS 1.2 + request": (Caller.visit_by_tls12, HANDSHAKES),
    "served: request": (Caller.request, REQUESTS),
    "served: WebSocket message": (Caller.echo, REQUESTS),
    "served: upload of 1 MiB": (Caller.upload, BODIES),
    "served: download of 1 MiB": (Caller.download, BODIES),
}
"""What is done so many times, and how many times in the shorter run."""


# Private


def _runs(caller: Caller) -> dict[str, Callable[[], None]]:
    """Of each work one to warm up, and then both lengths."""
    return {
        f"{name}, {length}": partial(do, caller, factor * count)
        for length, factor in (("warm", 1), ("short", 1), ("long", 3))
        for name, (do, count) in WORKS.items()
    }


def _differences(done: parts.Done) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, (_, count) in WORKS.items():
        short, long = (done.parts.get(f"{name}, {length}") for length in ("short", "long"))
        if short is not None and long is not None:
            found[name] = (long.own - short.own) / (2 * count)
            found[f"{name}, OpenSSL"] = (long.cryptography - short.cryptography) / (2 * count)
    return found


def _failed(done: parts.Done) -> dict[str, str]:
    return {name.rpartition(", ")[0]: why for name, why in done.failed.items()}


def _head(method: str, path: str, *fields: str) -> bytes:
    lines = (f"{method} {path} HTTP/1.1", f"Host: {NAME}", "User-Agent: bench", "Accept: */*", *fields)
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


def _ask(tls: ssl.SSLSocket, path: str, body: bytes = b"") -> None:
    if body:
        tls.sendall(_head("POST", path, f"Content-Length: {len(body)}"))
        tls.sendall(body)
    else:
        tls.sendall(_head("GET", path))
    if (said := _answer(tls)) != b'{"path":"%b","bytes":%d}' % (path.encode("ascii"), len(body)):
        raise ValueError(f"a wrong answer: {said[:80]!r}")


def _answer(tls: ssl.SSLSocket) -> bytes:
    """The body of a response, which must be a success."""
    head, _, body = _until(tls, b"\r\n\r\n").partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ValueError(f"no success: {head[:80]!r}")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += _more(tls)
    return body


def _until(tls: ssl.SSLSocket, end: bytes) -> bytes:
    data = b""
    while end not in data:
        data += _more(tls)
    return data


def _more(tls: ssl.SSLSocket) -> bytes:
    data = tls.recv(65536)
    if not data:
        raise ConnectionError("the connection ended inside an answer")
    return data
