"""The client's half of every operation: connect, shake hands, ask, check, say goodbye.

Decides what a right answer is. Each handshake is looked at, each answer compared to the
last byte; whatever is not as it must be raises, and ends the run.

What a handshake was is known from itself: version, cipher and resumption are asked of
OpenSSL (or seen by `tls13`, which is used where connections are new and OpenSSL's client
would be the limit); the client offers a single group, so a handshake that succeeds used
that; the chain is the very one that the peer was given, to the last byte (with the leaf's
signature, which TLS checks, this says as much as verifying it, at less than half the price).

An answer has exactly one Content-Length, no Transfer-Encoding, and exactly the bytes that
must come. Behind the last one may come the peer's close_notify and the end of the
connection, nothing else: no byte, no other alert, no reset. Some end without a close_notify
once they have ours (nginx, mitmproxy; granian a WebSocket). TLS has it for what could be
cut off, and nothing can be: the length of every answer is known from itself, and it was
there before we said goodbye. So that is no error, but it is counted apart (`TRUNCATED`).
Where nothing was asked, a peer may say so before its end (HAProxy's status 400).

Before: `load`, which decides when. Beside: `payload`.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from bench.compare import payload
from bench.compare.loop import READ, WRITE, Steps
from bench.compare.tls13 import Session, Tls13
from bench.lineage import NAME

_FRAMING = re.compile(rb"\n((?:content-length|transfer-encoding|connection)[ \t]*):([^\n]*)", re.IGNORECASE)
_FOLDED = re.compile(rb"\n[ \t]")
_LONGEST_HEAD = 8192
_RECEIVED = 1 << 16
_NOTHING_ASKED = b"HTTP/1.1 400 "
_DER = 2
"""ENCODING_DER of the certificates of `ssl`."""
CLOSED, TRUNCATED = "closed", "truncated"
"""Ends of connections: with a close_notify, without."""
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
    chains: Sequence[Sequence[bytes]]
    """Of which one must be shown; their certificates, DER."""
    handshakes: Counter[Handshake] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    """How connections ended to which a goodbye was said."""
    renewed: int = 0
    """Handshakes that showed another than the first of `chains`."""
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
        return self.context.wrap_socket(
            sock, server_hostname=NAME, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )

    def handshake(self, tls: Tls, resumes: bool = False) -> Steps:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                yield READ
        cipher = tls.cipher()
        resumed = bool(tls.session_reused)
        chain: Sequence[bytes] = ()
        if not resumed:
            chain = chain_of(tls)
            if chain not in self.chains:
                known = any(chain[:1] == each[:1] for each in self.chains)
                raise Wrong(f"another {'chain' if known else 'certificate'}, {len(chain)} certificates")
            self.renewed += chain != self.chains[0]
        if resumed is not resumes:
            raise Wrong("resumed" if resumed else "a full handshake where one was to be resumed")
        seen = (tls.version() or "", cipher[0] if cipher else "", resumed, len(chain))
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
            if len(data) > _LONGEST_HEAD:
                raise Wrong("no head of a response")
            data += yield from _received(tls)
        head, data = data[: end + 2], data[end + 4 :]
        kept = _check_head(head, payload.LARGE_BYTES)
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
        return kept

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

    def goodbye(self, tls: Tls, *, answered: bool = True) -> Steps:
        """In good order, and only over when the peer has closed as well: then all its work is done.

        `answered`: else nothing was asked. Raises what `left` does.
        """
        if isinstance(tls, Tls13):
            tls.unwrap()
        else:
            _unwrap(tls)
        socket.socket.shutdown(_plain(tls), socket.SHUT_WR)  # an ssl.SSLSocket's own would forget the rest
        yield from self.left(tls, answered=answered)

    def left(self, tls: Tls, *, answered: bool = True) -> Steps:
        """Until the peer has closed, in good order. Raises Wrong, TlsError, OSError."""
        end = yield from _end(tls, answered)
        if end == CLOSED:
            rest = tls.unread if isinstance(tls, Tls13) else b""
            if not rest:
                yield READ
                rest = socket.socket.recv(_plain(tls), _RECEIVED)
            if rest:
                raise Wrong("bytes behind the close_notify")
        self.ends[end] += 1

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
        head = data[: -len(expected)]
        kept = _check_head(head, len(expected))
        if data.find(b"\r\n\r\n") != len(head) - 4:
            raise Wrong(f"more than the answer: {data[:200]!r}")
        return kept


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


def certificates(fullchain: Path) -> list[bytes]:
    """Of the file, DER."""
    end = "-----END CERTIFICATE-----"
    *each, _ = fullchain.read_text().split(end)
    return [ssl.PEM_cert_to_DER_cert(pem.strip() + "\n" + end) for pem in each]


def chain_of(tls: Tls) -> list[bytes]:
    """The certificates that the peer sent, DER."""
    if isinstance(tls, Tls13):
        return tls.get_unverified_chain()
    # Public from Python 3.13 on.
    asked = tls if hasattr(tls, "get_unverified_chain") else getattr(tls, "_sslobj")  # noqa: B009
    chain = asked.get_unverified_chain() or ()
    return [each if isinstance(each, bytes) else each.public_bytes(_DER) for each in chain]


# Private


def _head(method: str, path: str, *fields: str) -> bytes:
    lines = (f"{method} {path} HTTP/1.1", f"Host: {NAME}", "User-Agent: bench", "Accept: */*", *fields)
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


def _check_status(head: bytes) -> None:
    if not head.startswith(b"HTTP/1.1 200 "):
        raise Wrong(f"no success: {head[:80]!r}")


@lru_cache(64)
def _check_head(head: bytes, length: int) -> bool:
    """Whether the connection may be kept; raises Wrong unless `head` is that of `length` bytes."""
    _check_status(head)
    kept, lengths = True, []
    for name, value in _FRAMING.findall(head):
        if name.lower() == b"connection":
            kept = kept and value.strip().lower() != b"close"
        else:
            lengths.append((name.lower(), value.strip()))
    if lengths != [(b"content-length", b"%d" % length)] or _FOLDED.search(head):
        raise Wrong(f"another length than that of the answer: {head[:200]!r}")
    return kept


def _plain(tls: Tls) -> socket.socket:
    return tls.sock if isinstance(tls, Tls13) else tls


def _unwrap(tls: ssl.SSLSocket) -> None:
    """Our close_notify, which leaves with the end that follows.

    `unwrap` looks for the peer's at once, and takes a fatal alert for one. Nothing can be there:
    the peer has not seen ours. Raises Wrong, OSError if something is.
    """
    tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    try:
        tls.unwrap()
    except ssl.SSLWantReadError:
        return
    raise Wrong("an end before ours")


def _end(tls: Tls, answered: bool) -> Generator[int, None, str]:
    """How the peer ends what it has to say.

    Python 3.11 takes a reset for an end where OpenSSL reads, which is why we look before.
    """
    part = False
    while True:
        yield READ
        if isinstance(tls, ssl.SSLSocket) and not socket.socket.recv(tls, 1, socket.MSG_PEEK):
            if part:
                raise Wrong("a part of a record behind the answer")
            return TRUNCATED
        try:
            data = tls.recv(_RECEIVED)
        except ssl.SSLWantReadError:
            part = True
            continue
        except ssl.SSLZeroReturnError:
            return CLOSED
        except ssl.SSLEOFError:
            if isinstance(tls, Tls13):
                return TRUNCATED
            raise
        part = False
        if not data:
            return CLOSED
        if answered or not data.startswith(_NOTHING_ASKED):
            raise Wrong(f"{len(data)} bytes behind the answer")


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
