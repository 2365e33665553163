"""The client's half of every operation: connect, shake hands, ask, check, say goodbye.

Decides what a right answer is. Each handshake is looked at, each answer compared to the
last byte; whatever is not as it must be raises, and ends the run.

What a handshake was is known from itself: version, cipher and resumption are asked of
OpenSSL (or seen by `tls13`, which is used where connections are new and OpenSSL's client
would be the limit); the client offers a single group, so a handshake that succeeds used
that; the certificate is the very one that the peer was given (with its signature, which TLS
checks, this says as much as verifying it, at less than half the price), the chain as sent.

Before: `load`, which decides when. Beside: `payload`.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.compare import payload
from bench.compare.loop import READ, WRITE, Steps
from bench.compare.tls13 import Session, Tls13
from bench.lineage import NAME

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)
_LONGEST_HEAD = 8192
_RECEIVED = 1 << 16
_GOODBYE = 24
"""Bytes of a sealed close_notify of TLS 1.3."""
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

Tls = ssl.SSLSocket | Tls13
Handshake = tuple[str, str, bool, int]
"""Version, cipher, whether it was resumed, certificates in the chain."""


class Wrong(ValueError):
    """An answer, or a handshake, that must not be; says which."""


@dataclass(slots=True)
class Client:
    """Talks to one peer in one way."""

    port: int
    context: ssl.SSLContext | None
    """None: by `tls13`."""
    leaves: Sequence[bytes]
    """The certificates of which one must be shown, DER."""
    handshakes: Counter[Handshake] = field(default_factory=Counter)
    renewed: int = 0
    """Handshakes that showed another than the first of `leaves`."""
    number: int = 0
    """Of the last request."""

    def connect(self, source: str = "", session: Session | None = None) -> Tls:
        """A new connection, before its handshake. On the loopback it takes no time: the kernel accepts."""
        sock = socket.socket()
        sock.settimeout(10.0)
        if source:
            sock.bind((source, 0))
        sock.connect(("127.0.0.1", self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        if self.context is None:
            return Tls13(sock, NAME, session)
        return self.context.wrap_socket(sock, server_hostname=NAME, do_handshake_on_connect=False)

    def handshake(self, tls: Tls, resumes: bool = False) -> Steps:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                yield READ
        cipher = tls.cipher()
        resumed = bool(tls.session_reused)
        if not resumed:
            leaf = tls.getpeercert(binary_form=True)
            if leaf not in self.leaves:
                raise Wrong("another certificate")
            self.renewed += leaf != self.leaves[0]
        if resumed is not resumes:
            raise Wrong("resumed" if resumed else "a full handshake where one was to be resumed")
        seen = (
            tls.version() or "",
            cipher[0] if cipher else "",
            resumed,
            0 if resumed else chain_length(tls),
        )
        self.handshakes[seen] += 1

    def get(self, tls: Tls) -> Generator[int, None, bool]:
        """One small request; whether the connection may be kept."""
        self.number += 1
        path = f"/{self.number:08d}"
        return (yield from self._ask(tls, _head("GET", path), path))

    def post(self, tls: Tls) -> Generator[int, None, bool]:
        """One update of 2 KB, as a platform sends it."""
        self.number += 1
        path = f"{payload.HOOK}{self.number:08d}"
        head = _head(
            "POST", path, "Content-Type: application/json", f"Content-Length: {len(payload.WEBHOOK)}"
        )
        return (yield from self._ask(tls, head + payload.WEBHOOK, path))

    def upload(self, tls: Tls) -> Generator[int, None, bool]:
        yield from _send(tls, _head("POST", payload.UPLOAD, f"Content-Length: {payload.LARGE_BYTES}"))
        for _ in range(payload.LARGE):
            yield from _send(tls, payload.BLOCK)
        return (yield from self._answer(tls, payload.answer(payload.UPLOAD)))

    def download(self, tls: Tls) -> Generator[int, None, bool]:
        yield from _send(tls, _head("GET", payload.DOWNLOAD))
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += yield from _received(tls)
        head, data = data[: end + 2], data[end + 4 :]
        _check_status(head)
        got = len(data)
        if not payload.is_pattern(data, 0):
            raise Wrong("another download")
        buffer = bytearray(_RECEIVED)
        view = memoryview(buffer)
        while got < payload.LARGE_BYTES:
            assert isinstance(tls, ssl.SSLSocket)
            try:
                count = tls.recv_into(buffer)
            except ssl.SSLWantReadError:
                yield READ
                continue
            if not count or not payload.is_pattern(view[:count], got):
                raise Wrong("another download" if count else "half a download")
            got += count
        if got > payload.LARGE_BYTES:
            raise Wrong("more than the download")
        return not _CLOSE.search(head)

    def open_socket(self, tls: Tls) -> Steps:
        """Become a WebSocket."""
        upgrade = (
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )
        yield from _send(tls, _head("GET", payload.SOCKET, *upgrade))
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += yield from _received(tls)
            if len(data) > _LONGEST_HEAD:
                raise Wrong("no head of a response")
        if not data.startswith(b"HTTP/1.1 101 ") or b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" not in data:
            raise Wrong(f"no WebSocket: {data[:40]!r}")

    def echo(self, tls: Tls) -> Generator[int, None, bool]:
        """One message there and back."""
        yield from _send(tls, payload.FRAME_FROM_CLIENT)
        data = b""
        while data != payload.FRAME_FROM_BOT:
            yield READ
            data += yield from _received(tls)
            if not payload.FRAME_FROM_BOT.startswith(data):
                raise Wrong(f"another message: {data[:40]!r}")
        return True

    def goodbye(self, tls: Tls, *, answered: bool = False) -> Steps:
        """In good order, and only over when the peer has closed as well: then all its work is done.

        `answered`: only its own goodbye may be to come. Raises Wrong, ConnectionResetError.
        """
        try:
            tls.unwrap()
        except (ssl.SSLError, OSError):
            pass  # ours is sent; its own may come, or not
        sock = tls.sock if isinstance(tls, Tls13) else tls
        socket.socket.shutdown(sock, socket.SHUT_WR)  # an ssl.SSLSocket's own would forget the rest
        rest = tls.unread if isinstance(tls, Tls13) else b""
        while True:
            yield READ
            data = socket.socket.recv(sock, _RECEIVED)
            if not data:
                break
            rest += data
        if answered and len(rest) not in (0, _GOODBYE):
            raise Wrong(f"{len(rest)} bytes behind the answer")

    def _ask(self, tls: Tls, request: bytes, path: str) -> Generator[int, None, bool]:
        yield from _send(tls, request)
        yield READ
        return (yield from self._answer(tls, payload.answer(path)))

    def _answer(self, tls: Tls, expected: bytes) -> Generator[int, None, bool]:
        data = yield from _received(tls)
        while not data.endswith(expected):
            head, end, body = data.partition(b"\r\n\r\n")
            if (end and not expected.startswith(body)) or len(data) > _LONGEST_HEAD:
                _check_status(head)
                raise Wrong(f"another answer: {body[:80]!r}")
            data += yield from _received(tls)
        _check_status(data)
        head = data[: -len(expected)]
        if data.find(b"\r\n\r\n") != len(head) - 4:
            raise Wrong(f"more than the answer: {data[:200]!r}")
        said = _LENGTH.search(head)
        if said is not None and int(said[1]) != len(expected):
            raise Wrong(f"another length than that of the answer: {head[:200]!r}")
        return not _CLOSE.search(head)


def context(version: str, group: str, suite: str) -> ssl.SSLContext:
    """Offers nothing else; the suites of TLS 1.3 are in `openssl.cnf`. `Client` checks what it sees."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.minimum_version = made.maximum_version = VERSIONS[version]
    made.set_ecdh_curve(group)
    if version == "1.2":
        made.set_ciphers(suite)
    return made


def leaf_of(fullchain: Path) -> bytes:
    pem = fullchain.read_text()
    end = "-----END CERTIFICATE-----"
    return ssl.PEM_cert_to_DER_cert(pem[: pem.index(end) + len(end)])


def chain_length(tls: Tls) -> int:
    """Certificates that the peer sent."""
    # Public from Python 3.13 on.
    asked = tls if hasattr(tls, "get_unverified_chain") else getattr(tls, "_sslobj")  # noqa: B009
    return len(asked.get_unverified_chain() or ())


# Private


def _head(method: str, path: str, *fields: str) -> bytes:
    lines = (f"{method} {path} HTTP/1.1", f"Host: {NAME}", "User-Agent: bench", "Accept: */*", *fields)
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


def _check_status(head: bytes) -> None:
    if not head.startswith(b"HTTP/1.1 200 "):
        raise Wrong(f"no success: {head[:80]!r}")


def _send(tls: Tls, data: bytes) -> Steps:
    view = memoryview(data)
    while view:
        try:
            view = view[tls.send(view[:_RECEIVED]) :]
        except ssl.SSLWantWriteError:
            yield WRITE


def _received(tls: Tls) -> Generator[int, None, bytes]:
    while True:
        try:
            data = tls.recv(_RECEIVED)
        except ssl.SSLWantReadError:
            yield READ
            continue
        if not data:
            raise Wrong("the end of the connection in place of an answer")
        return data
