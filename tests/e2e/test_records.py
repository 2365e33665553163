"""What a client may do below HTTP: have keys changed, send half a record, ask and not listen."""

from __future__ import annotations

import hmac
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.certs import Authority
from tests.e2e.conftest import Start
from tests.harness import Bot, Proxied
from tests.wire import HelloFor, get

SUITE = "TLS_AES_256_GCM_SHA384"
HANDSHAKE, DATA, KEY_UPDATE = 22, 23, 24
FLOOD = 60_000
"""Changes of keys, at most; the kernel's buffers hold a few thousand of their answers."""


class KeyChanger:
    """A client whose records are sealed by hand, because Python's cannot change its keys (RFC 8446 4.6.3)."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """`context` writes its secrets to a file."""
        self.sock = sock
        self._client = HelloFor(context)
        sock.sendall(self._client.data)
        self._client.finish(sock)
        cipher = self._client.tls.cipher()
        assert cipher is not None
        assert cipher[0] == SUITE
        lines = (line.split() for line in Path(context.keylog_filename).read_text().splitlines())
        (secret,) = (words[2] for words in lines if words[0] == "CLIENT_TRAFFIC_SECRET_0")
        self._use(bytes.fromhex(secret))

    def request(self, data: bytes) -> bytes:
        """Send it in a record, read one."""
        self.sock.sendall(self._sealed(DATA, data))
        while True:
            try:
                return self._client.tls.read(65536)
            except ssl.SSLWantReadError:
                self._client.incoming.write(self.sock.recv(65536))

    def change_keys(self, *, both: bool) -> None:
        """`both`: the server is to change its own as well, and to say so."""
        self.sock.sendall(self._sealed(HANDSHAKE, bytes((KEY_UPDATE, 0, 0, 1, both))))
        self._use(self._expand(b"traffic upd", 48))

    def flood(self) -> None:
        """Have the server answer and answer, and take nothing."""
        for _ in range(FLOOD):
            self.change_keys(both=True)

    def _use(self, secret: bytes) -> None:
        self._secret, self._number = secret, 0
        self._key = AESGCM(self._expand(b"key", 32))
        self._iv = int.from_bytes(self._expand(b"iv", 12), "big")

    def _expand(self, label: bytes, size: int) -> bytes:
        """HKDF-Expand-Label (RFC 8446 7.1), of which one block is enough."""
        name = b"tls13 " + label
        info = size.to_bytes(2, "big") + bytes((len(name),)) + name + b"\0\x01"
        return hmac.digest(self._secret, info, "sha384")[:size]

    def _sealed(self, kind: int, data: bytes) -> bytes:
        head = b"\x17\x03\x03" + (len(data) + 17).to_bytes(2, "big")
        nonce = (self._iv ^ self._number).to_bytes(12, "big")
        self._number += 1
        return head + self._key.encrypt(nonce, data + bytes((kind,)), head)


@pytest.fixture
def telling(ca: Authority, tmp_path: Path) -> ssl.SSLContext:
    context = ca.trust()
    context.keylog_filename = str(tmp_path / "secrets")
    return context


@pytest.fixture
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


def test_a_client_that_has_its_keys_changed_is_as_idle_as_before(
    start: Start, trust: ssl.SSLContext, telling: ssl.SSLContext, bot: Bot
) -> None:
    front = start(bot.url, timeouts={"drain": "15s"})
    with front.tcp() as sock, front.connect(trust) as witness:
        client = KeyChanger(sock, telling)
        assert client.request(get()).startswith(b"HTTP/1.1 200 ")
        client.change_keys(both=False)
        # What was sent before on another connection is read before what comes now on this one.
        assert witness.request(get()).status == 200
        front.terminate()
        assert front.wait() == 0
    assert not [line for line in front.log.join() if "connections cut" in line]


def test_who_has_keys_changed_for_ever_and_takes_no_answer_is_cut(
    start: Start, trust: ssl.SSLContext, telling: ssl.SSLContext, bot: Bot
) -> None:
    front = start(bot.url)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        sock.settimeout(10)
        sock.connect(("127.0.0.1", front.port))
        client = KeyChanger(sock, telling)
        assert client.request(get()).startswith(b"HTTP/1.1 200 ")
        with pytest.raises(ConnectionError):
            client.flood()
    with front.connect(trust) as other:
        assert other.request(get()).status == 200


def flood(front: Proxied, requests: int) -> socket.socket:
    """Requests to be redirected, all at once, from somebody who does not listen."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(10)
    sock.connect(("127.0.0.1", front.plain_port))
    sock.sendall(b"GET /flood HTTP/1.1\r\nHost: localhost\r\n\r\n" * requests)
    return sock


def test_our_own_answers_are_made_as_fast_as_they_are_taken(start: Start, bot: Bot, unused_port: int) -> None:
    front = start(bot.url, plain_listen=[f"127.0.0.1:{unused_port}"])
    requests = 1000
    with flood(front, requests) as sock:
        for path in ("/first", "/second"):  # between them the flood has had its turn
            with front.tcp(front.plain_port) as witness:
                witness.sendall(get(path))
                assert witness.recv(65536).startswith(b"HTTP/1.1 308 ")
        front.access.wait_for(lambda line: "/second" in line)
        made = len(front.records(lambda record: record["path"] == "/flood"))
        assert 0 < made < requests * 0.8
        data = b""
        while data.count(b"HTTP/1.1 308 ") < requests and (more := sock.recv(65536)):
            data += more
    assert data.count(b"HTTP/1.1 308 ") == requests
