"""The client's half of TLS 1.3, for the load generator and nothing else.

OpenSSL's own client needs three times what a server needs for the same handshake (it
decodes every key of the chain, and has no way not to), so that with it the load would be
the limit. This one does what must be done and can be checked: it verifies the signature
and the Finished of the server, by `cryptography`, and takes the messages of its flight in
their order, each once, under its keys, and nothing else; `client` compares the chain. It
takes short cuts where only a real client's secrecy would suffer: its key share is the same
for every connection.

It speaks TLS_AES_256_GCM_SHA384 over X25519 and offers nothing else, so that a handshake
that succeeds has used them; it counts tickets as they come. Its methods are those of
`ssl.SSLSocket` that `client` uses. The names are those of RFC 8446.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509 import load_der_x509_certificate

SUITE, GROUP, VERSION = b"\x13\x02", b"\x00\x1d", b"\x03\x04"
ECDSA_SHA256, RSA_PSS_SHA256 = b"\x04\x03", b"\x08\x04"
CLIENT_HELLO, SERVER_HELLO, TICKET, EXTENSIONS, CERTIFICATE, VERIFY, FINISHED = 1, 2, 4, 8, 11, 15, 20
FULL, RESUMED = (EXTENSIONS, CERTIFICATE, VERIFY, FINISHED), (EXTENSIONS, FINISHED)
"""The messages of the server's flight: these, in this order."""
CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23
CLOSE_NOTIFY = b"\x01\x00"
SIZE = 48
"""Of a hash, hence of every secret."""
_ZERO = bytes(SIZE)
_NOTHING = hashlib.sha384(b"").digest()
_EARLY = hmac.digest(_ZERO, _ZERO, "sha384")
_RETRY = hashlib.sha256(b"HelloRetryRequest").digest()
_KEY = X25519PrivateKey.generate()
_SHARE = _KEY.public_key().public_bytes_raw()
_SIGNED = b" " * 64 + b"TLS 1.3, server CertificateVerify\0"
_CHANGE_CIPHER_SPEC = b"\x14\x03\x03\x00\x01\x01"
_SHA256 = hashes.SHA256()
_ECDSA, _PSS = ec.ECDSA(_SHA256), padding.PSS(padding.MGF1(_SHA256), padding.PSS.DIGEST_LENGTH)
_RECEIVED = 1 << 16


class TlsError(ValueError):
    """The peer's messages are not those of a handshake that may succeed."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a ticket resumes."""

    ticket: bytes
    key: bytes
    age_add: int
    obtained: float


class Tls13:
    """One connection on `sock`, which does not block."""

    def __init__(self, sock: socket.socket, name: str, session: Session | None = None) -> None:
        self.sock = sock
        self._session = session
        self._transcript = hashlib.sha384()
        self._raw = b""
        self._messages = b""
        self._chain: list[bytes] = []
        self._due: tuple[int, ...] = ()
        """Messages of the server's flight that are to come."""
        self._reading: _Keys | None = None
        self._writing: _Keys | None = None
        self._step: Callable[[int, bytes], None] = self._server_hello
        self._early = hmac.digest(_ZERO, session.key, "sha384") if session else _EARLY
        self._done = False
        self._newest = b""
        self.session_reused = False
        self.tickets = 0
        hello = _client_hello(name) if session is None else self._hello_again(name, session)
        self._transcript.update(hello)
        sock.send(b"\x16\x03\x01" + len(hello).to_bytes(2, "big") + hello)

    # As of ssl.SSLSocket

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def version(self) -> str:
        return "TLSv1.3"

    def cipher(self) -> tuple[str, str, int]:
        return "TLS_AES_256_GCM_SHA384", "TLSv1.3", 256

    def get_unverified_chain(self) -> list[bytes]:
        return self._chain

    def do_handshake(self) -> None:
        """Raises ssl.SSLWantReadError until it is done."""
        while not self._done:
            kind, data = self._record()
            if kind != HANDSHAKE:
                raise TlsError(f"a record of type {kind} in the handshake: {data!r}")
            try:
                self._take(data)
            except IndexError:
                raise TlsError("a message that is cut short") from None

    def recv(self, _: int) -> bytes:
        """What one record holds; nothing at the peer's close_notify.

        Raises ssl.SSLEOFError where the connection ends without, TlsError for another alert.
        """
        while True:
            kind, data = self._record()
            if kind == HANDSHAKE:
                self._take(data)
            elif self._messages:
                raise TlsError("half a message")
            elif kind == ALERT:
                if data != CLOSE_NOTIFY:
                    raise TlsError(f"an alert: {data.hex()}")
                return b""
            elif kind != DATA:
                raise TlsError(f"a record of type {kind}")
            elif data:
                return data

    def send(self, data: bytes | memoryview) -> int:
        part = data[:16384]
        self.sock.send(self._sealed(DATA, bytes(part)))
        return len(part)

    @property
    def unread(self) -> bytes:
        """Received and not opened."""
        return self._raw

    def unwrap(self) -> None:
        if self._writing is None:
            raise OSError("there are no keys yet")
        self.sock.send(self._sealed(ALERT, CLOSE_NOTIFY))

    # Records

    def _record(self) -> tuple[int, bytes]:
        """Type and content of the next, which is whole; raises ssl.SSLWantReadError until then."""
        while True:
            raw = self._raw
            if len(raw) >= 5 and len(raw) >= (end := 5 + int.from_bytes(raw[3:5], "big")):
                self._raw = raw[end:]
                if raw[0] == CHANGE_CIPHER_SPEC and not self._done and raw[5:end] == b"\x01":
                    continue  # for middle boxes
                if self._reading is None:
                    return raw[0], raw[5:end]
                if raw[0] != DATA:
                    raise TlsError(f"a record of type {raw[0]} that is not sealed")
                inner = self._reading.open(raw[:5], raw[5:end]).rstrip(b"\0")
                if not inner:
                    raise TlsError("a record of no type")
                return inner[-1], inner[:-1]
            try:
                more = self.sock.recv(_RECEIVED)
            except BlockingIOError:
                raise ssl.SSLWantReadError from None
            if not more:
                if not self._done:
                    raise TlsError("the end of the connection in the handshake")
                if self._raw:
                    raise TlsError("half a record")
                raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the end without a close_notify")
            self._raw += more

    def _sealed(self, kind: int, data: bytes) -> bytes:
        assert self._writing is not None
        return self._writing.seal(data + bytes((kind,)))

    # Messages of the handshake

    def _take(self, data: bytes) -> None:
        self._messages += data
        while len(self._messages) >= 4:
            end = 4 + int.from_bytes(self._messages[1:4], "big")
            if len(self._messages) < end:
                return
            message, self._messages = self._messages[:end], self._messages[end:]
            self._step(message[0], message)

    def _hello_again(self, name: str, session: Session) -> bytes:
        """With a ticket, and the proof that its key is known."""
        age = (int((time.monotonic() - session.obtained) * 1000) + session.age_add) % (1 << 32)
        identities = _vector(2, _vector(2, session.ticket) + age.to_bytes(4, "big"))
        hello = _client_hello(name, _extension(41, identities + _vector(2, _vector(1, _ZERO))))
        bare = hello[: -SIZE - 3]
        binder = _derived(self._early, _BINDER, _NOTHING)
        return bare + _vector(2, _vector(1, _finished(binder, hashlib.sha384(bare).digest())))

    def _server_hello(self, kind: int, message: bytes) -> None:
        if kind != SERVER_HELLO or message[6:38] == _RETRY:
            raise TlsError("no ServerHello, or a demand for another")
        begin = 39 + message[38]
        if message[begin : begin + 2] != SUITE:
            raise TlsError(f"another suite: {message[begin : begin + 2].hex()}")
        found = _extensions(message[begin + 3 :])
        share = found.get(51, b"")
        if found.get(43) != VERSION or share[:4] != GROUP + b"\0\x20":
            raise TlsError("another version or group")
        self._is_last()
        self.session_reused = 41 in found
        self._due = RESUMED if self.session_reused else FULL
        self._transcript.update(message)
        seen = self._transcript.digest()
        shared = _KEY.exchange(X25519PublicKey.from_public_bytes(share[4:]))
        salt = _derived(self._early, _NEXT, _NOTHING) if self.session_reused else _SALT
        secret = hmac.digest(salt, shared, "sha384")
        self._ours = _derived(secret, _CLIENT_HANDSHAKE, seen)
        self._theirs = _derived(secret, _SERVER_HANDSHAKE, seen)
        self._reading, self._writing = _Keys(self._theirs), _Keys(self._ours)
        self._master = hmac.digest(_derived(secret, _NEXT, _NOTHING), _ZERO, "sha384")
        self._step = self._server_flight

    def _server_flight(self, kind: int, message: bytes) -> None:
        if kind != self._due[0]:
            raise TlsError(f"a message of type {kind} where {self._due[0]} is due")
        self._due = self._due[1:]
        if kind == CERTIFICATE:
            self._chain = _certificates(message)
        elif kind == VERIFY:
            verify(self._chain[0], message, _SIGNED + self._transcript.digest())
        elif kind == FINISHED:
            self._is_last()
            if message[4:] != _finished(self._theirs, self._transcript.digest()):
                raise TlsError("a wrong Finished")
            self._transcript.update(message)
            self._finish()
            return
        self._transcript.update(message)

    def _is_last(self) -> None:
        """Of its keys: what follows must be under the next."""
        if self._messages:
            raise TlsError("a message behind the last one of its keys")

    def _finish(self) -> None:
        seen = self._transcript.digest()
        finished = _message(FINISHED, _finished(self._ours, seen))
        self.sock.send(_CHANGE_CIPHER_SPEC + self._sealed(HANDSHAKE, finished))
        self._transcript.update(finished)
        self._reading = _Keys(_derived(self._master, _SERVER_DATA, seen))
        self._writing = _Keys(_derived(self._master, _CLIENT_DATA, seen))
        self._step = self._after
        self._done = True

    def _after(self, kind: int, message: bytes) -> None:
        if kind != TICKET:
            raise TlsError(f"a message of type {kind} after the handshake")
        self.tickets += 1
        self._newest = message

    @property
    def session(self) -> Session:
        """To resume, from the newest ticket; where there was none, the one that was resumed."""
        message = self._newest
        if not message:
            if self._session is None:
                raise TlsError("no ticket")
            return self._session
        nonce = message[13 : 13 + message[12]]
        begin = 13 + len(nonce)
        ticket = message[begin + 2 : begin + 2 + int.from_bytes(message[begin : begin + 2], "big")]
        master = _derived(self._master, _RESUMPTION, self._transcript.digest())
        info = _info(b"resumption", SIZE, len(nonce)) + nonce + b"\x01"
        key = hmac.digest(master, info, "sha384")
        return Session(ticket, key, int.from_bytes(message[8:12], "big"), time.monotonic())


def verify(leaf: bytes, message: bytes, signed: bytes) -> None:
    """Raises TlsError unless `message`, a CertificateVerify, has the signature by the key of `leaf`."""
    key, algorithm, signature = _public_key(leaf), message[4:6], message[8:]
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and algorithm == ECDSA_SHA256:
            key.verify(signature, signed, _ECDSA)
        elif isinstance(key, rsa.RSAPublicKey) and algorithm == RSA_PSS_SHA256:
            key.verify(signature, signed, _PSS, _SHA256)
        else:
            raise TlsError("a signature of another kind")
    except InvalidSignature:
        raise TlsError("a wrong signature") from None


# Private


class _Keys:
    """One direction."""

    __slots__ = ("_aead", "_iv", "_number")

    def __init__(self, secret: bytes) -> None:
        self._aead = AESGCM(hmac.digest(secret, _KEY_INFO, "sha384")[:32])
        self._iv = int.from_bytes(hmac.digest(secret, _IV_INFO, "sha384")[:12], "big")
        self._number = -1

    def open(self, head: bytes, data: bytes) -> bytes:
        try:
            return self._aead.decrypt(self._nonce(), data, head)
        except InvalidTag:
            raise TlsError("a record that was changed") from None

    def seal(self, inner: bytes) -> bytes:
        head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        return head + self._aead.encrypt(self._nonce(), inner, head)

    def _nonce(self) -> bytes:
        self._number += 1
        return (self._iv ^ self._number).to_bytes(12, "big")


def _vector(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width, "big") + data


def _message(kind: int, body: bytes) -> bytes:
    return bytes((kind,)) + _vector(3, body)


def _extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + _vector(2, data)


def _extensions(block: bytes) -> dict[int, bytes]:
    found, position = {}, 2
    while position < len(block):
        end = position + 4 + int.from_bytes(block[position + 2 : position + 4], "big")
        found[int.from_bytes(block[position : position + 2], "big")] = block[position + 4 : end]
        position = end
    return found


def _certificates(message: bytes) -> list[bytes]:
    """In a message with an empty context, and with no extensions, of which none was offered."""
    found, position = [], 8
    while position < len(message):
        end = position + 3 + int.from_bytes(message[position : position + 3], "big")
        found.append(message[position + 3 : end])
        position = end + 2
        if message[end:position] != b"\0\0":
            raise TlsError("a certificate with extensions, or cut short")
    if message[4:8] != b"\0" + (len(message) - 8).to_bytes(3, "big") or not found:
        raise TlsError("a Certificate that is none")
    return found


def _info(label: bytes, size: int, context: int = 0) -> bytes:
    """HkdfLabel up to its context, which is as long as `context` says."""
    return size.to_bytes(2, "big") + _vector(1, b"tls13 " + label) + bytes((context,))


# One block of HKDF-Expand is always enough: it ends with the number 1.
_KEY_INFO, _IV_INFO = _info(b"key", 32) + b"\x01", _info(b"iv", 12) + b"\x01"
_FINISHED_INFO = _info(b"finished", SIZE) + b"\x01"
_NEXT, _BINDER, _RESUMPTION, _CLIENT_HANDSHAKE, _SERVER_HANDSHAKE, _CLIENT_DATA, _SERVER_DATA = (
    _info(label, SIZE, SIZE)
    for label in (
        b"derived",
        b"res binder",
        b"res master",
        b"c hs traffic",
        b"s hs traffic",
        b"c ap traffic",
        b"s ap traffic",
    )
)


def _derived(secret: bytes, info: bytes, seen: bytes) -> bytes:
    return hmac.digest(secret, info + seen + b"\x01", "sha384")


_SALT = _derived(_EARLY, _NEXT, _NOTHING)
"""Of a handshake that resumes nothing."""


def _finished(secret: bytes, seen: bytes) -> bytes:
    return hmac.digest(hmac.digest(secret, _FINISHED_INFO, "sha384"), seen, "sha384")


def _client_hello(name: str, last: bytes = b"") -> bytes:
    """`last` is an extension that must be the last one."""
    extensions = _offer(name) + last
    rest = _vector(2, SUITE) + b"\x01\0" + _vector(2, extensions)
    return _message(CLIENT_HELLO, b"\x03\x03" + os.urandom(32) + b"\x20" + os.urandom(32) + rest)


@lru_cache(1)
def _offer(name: str) -> bytes:
    """What a client of OpenSSL sends, with a single suite and group."""
    extensions = (
        _extension(0, _vector(2, b"\0" + _vector(2, name.encode("ascii")))),
        _extension(10, _vector(2, GROUP)),
        _extension(13, _vector(2, ECDSA_SHA256 + RSA_PSS_SHA256)),
        _extension(22, b""),
        _extension(23, b""),
        _extension(35, b""),
        _extension(43, _vector(1, VERSION)),
        _extension(45, _vector(1, b"\x01")),
        _extension(51, _vector(2, GROUP + _vector(2, _SHARE))),
    )
    return b"".join(extensions)


@lru_cache(8)
def _public_key(leaf: bytes) -> object:
    return load_der_x509_certificate(leaf).public_key()
