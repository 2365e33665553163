"""A server of TLS 1.3 by hand, for what OpenSSL would not do: a flight in any order, any record."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from bench.compare import tls13

EXTENSIONS, CERTIFICATE, VERIFY, FINISHED = 8, 11, 15, 20
FULL, RESUMED = (EXTENSIONS, CERTIFICATE, VERIFY, FINISHED), (EXTENSIONS, FINISHED)
CLOSE_NOTIFY = b"\x01\x00"


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of one that does `serve` with every client, one after the other."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                plain = listener.accept()[0]
            except OSError:
                return
            with plain:
                plain.settimeout(10)
                try:
                    serve(plain)
                except OSError:
                    pass  # a client that found out goes without a word

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


class ByHand:
    """One connection, whose handshake is `flight`, `behind` it in its record; in the clear if empty."""

    def __init__(
        self,
        sock: socket.socket,
        chain: Sequence[bytes],
        key: ec.EllipticCurvePrivateKey,
        flight: Sequence[int] = FULL,
        psk: bytes = b"",
        behind: bytes = b"",
    ) -> None:
        self.sock = sock
        self._stream = sock.makefile("rb")
        self._chain, self._key, self._psk = chain, key, psk
        self._transcript = hashlib.sha384()
        self._master = self._hello()
        self._flight(flight, behind)
        self._reading = tls13._Keys(self._client_secret)
        self._writing = tls13._Keys(
            tls13._derived(self._master, tls13._SERVER_DATA, self._transcript.digest())
        )
        client = tls13._derived(self._master, tls13._CLIENT_DATA, self._transcript.digest())
        assert self._record()[0] == tls13.HANDSHAKE, "the client's Finished"
        self._reading = tls13._Keys(client)

    def recv(self, _: int) -> bytes:
        kind, data = self._record()
        return data if kind == tls13.DATA else b""

    def sendall(self, data: bytes) -> None:
        self._send(tls13.DATA, data)

    def alert(self, data: bytes) -> None:
        self._send(tls13.ALERT, data)

    # Private

    def _send(self, kind: int, data: bytes) -> None:
        self.sock.sendall(self._writing.seal(data + bytes((kind,))))

    def _record(self) -> tuple[int, bytes]:
        while True:
            head = self._stream.read(5)
            if len(head) < 5:
                raise ConnectionResetError("the client has gone")
            data = self._stream.read(int.from_bytes(head[3:], "big"))
            if head[0] == tls13.DATA:
                inner = self._reading.open(head, data)
                return inner[-1], inner[:-1]
            if head[0] != 20:
                return head[0], data

    def _hello(self) -> bytes:
        """Both, and the keys of the handshake; the master secret."""
        hello = self._record()[1]
        self._transcript.update(hello)
        suites = int.from_bytes(hello[71:73], "big")
        offered = tls13._extensions(hello[73 + suites + 2 :])
        share = offered[51][6:38]
        own = X25519PrivateKey.generate()
        extensions = tls13._extension(43, tls13.VERSION) + tls13._extension(
            51, tls13.GROUP + tls13._vector(2, own.public_key().public_bytes_raw())
        )
        if self._psk:
            extensions += tls13._extension(41, b"\0\0")
        body = (
            b"\x03\x03" + os.urandom(32) + hello[38:71] + tls13.SUITE + b"\0" + tls13._vector(2, extensions)
        )
        answer = tls13._message(tls13.SERVER_HELLO, body)
        self._transcript.update(answer)
        self.sock.sendall(b"\x16\x03\x03" + tls13._vector(2, answer))
        early = hmac.digest(tls13._ZERO, self._psk or tls13._ZERO, "sha384")
        shared = own.exchange(X25519PublicKey.from_public_bytes(share))
        secret = hmac.digest(tls13._derived(early, tls13._NEXT, tls13._NOTHING), shared, "sha384")
        seen = self._transcript.digest()
        self._client_secret = tls13._derived(secret, tls13._CLIENT_HANDSHAKE, seen)
        self._secret = tls13._derived(secret, tls13._SERVER_HANDSHAKE, seen)
        self._writing = tls13._Keys(self._secret)
        return hmac.digest(tls13._derived(secret, tls13._NEXT, tls13._NOTHING), tls13._ZERO, "sha384")

    def _flight(self, flight: Sequence[int], behind: bytes) -> None:
        messages = b"".join(self._message(kind) for kind in flight or FULL)
        if flight:
            self._send(tls13.HANDSHAKE, messages + behind)
        else:
            self.sock.sendall(b"\x16\x03\x03" + tls13._vector(2, messages))

    def _message(self, kind: int) -> bytes:
        """As it must be, for what was said until now."""
        if kind == EXTENSIONS:
            body = b"\0\0"
        elif kind == CERTIFICATE:
            body = b"\0" + tls13._vector(
                3, b"".join(tls13._vector(3, each) + b"\0\0" for each in self._chain)
            )
        elif kind == VERIFY:
            signed = tls13._SIGNED + self._transcript.digest()
            signature = self._key.sign(signed, ec.ECDSA(hashes.SHA256()))
            body = tls13.ECDSA_SHA256 + tls13._vector(2, signature)
        else:
            body = tls13._finished(self._secret, self._transcript.digest())
        message = tls13._message(kind, body)
        self._transcript.update(message)
        return message
