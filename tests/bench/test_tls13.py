"""The load generator's own TLS 1.3: it gets on with OpenSSL, and takes nothing wrong for right."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from bench.compare import tls13
from bench.compare.client import chain_of
from bench.compare.tls13 import Session, Tls13, TlsError
from tests.bench.by_hand import CERTIFICATE, EXTENSIONS, FINISHED, FULL, RESUMED, VERIFY, ByHand, listening
from tests.certs import Issued, Key, ecdsa_key, root, rsa_key

NAME = "localhost"
KEYS: dict[str, Callable[[], Key]] = {"ecdsa": ecdsa_key, "rsa": rsa_key}


@contextmanager
def server(site: Issued, directory: Path, connections: int, **settings: object) -> Iterator[int]:
    """OpenSSL's, which says back what it is told; its port."""
    pair = site.write(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.chain, pair.key)
    for name, value in settings.items():
        setattr(context, name, value)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(connections):
            plain, _ = listener.accept()
            try:
                with context.wrap_socket(plain, server_side=True) as tls:
                    tls.sendall(tls.recv(100) or b"nothing")
                    tls.recv(1)  # until the client has gone
            except OSError:
                plain.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join()
        listener.close()


@contextmanager
def connection(port: int, session: tls13.Session | None = None) -> Iterator[Tls13]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        yield Tls13(sock, NAME, session)


def said(tls: Tls13) -> bytes:
    tls.do_handshake()
    tls.send(b"something")
    answer = tls.recv(100)
    tls.unwrap()
    return answer


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("tickets", [0, 1, 2])
def test_it_speaks_with_openssl_and_counts_what_was_sent(tmp_path, keys, tickets):
    site = root().intermediate().issue(NAME, key=KEYS[keys]())
    with server(site, tmp_path, 1, num_tickets=tickets) as port, connection(port) as tls:
        assert said(tls) == b"something"
        assert chain_of(tls) == [each.public_bytes(Encoding.DER) for each in site.chain]
        assert tls.tickets == tickets
        assert not tls.session_reused


def test_it_resumes_with_every_new_ticket(tmp_path):
    session = None
    with server(root().intermediate().issue(NAME), tmp_path, 3) as port:
        for number in range(3):
            with connection(port, session) as tls:
                assert said(tls) == b"something"
                assert tls.session_reused is (number > 0)
                session = tls.session


@pytest.mark.parametrize(("signed", "taken"), [(b"the transcript", True), (b"another", False)])
def test_a_signature_is_verified(signed, taken):
    site = root().issue(NAME, key=ecdsa_key())
    assert isinstance(site.key, ec.EllipticCurvePrivateKey)
    signature = site.key.sign(b"the transcript", ec.ECDSA(hashes.SHA256()))
    message = b"\x0f\0\0\0" + tls13.ECDSA_SHA256 + len(signature).to_bytes(2, "big") + signature
    leaf = site.leaf.public_bytes(Encoding.DER)
    with nullcontext() if taken else pytest.raises(TlsError, match="a wrong signature"):
        tls13.verify(leaf, message, signed)


@pytest.mark.parametrize("settings", [{"maximum_version": ssl.TLSVersion.TLSv1_2}])
def test_it_speaks_nothing_but_tls_1_3(tmp_path, settings):
    with (
        server(root().intermediate().issue(NAME), tmp_path, 1, **settings) as port,
        connection(port) as tls,
        pytest.raises(TlsError),
    ):
        tls.do_handshake()


def shaken(flight: Sequence[int], *, resumed: bool, behind: bytes = b"") -> None:
    """Shakes hands with a server that has `flight` for its own, then `behind` under the same keys."""
    site = root().intermediate().issue(NAME, key=ecdsa_key())
    key = site.key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    chain = [each.public_bytes(Encoding.DER) for each in site.chain]
    session = Session(b"a ticket", bytes(range(48)), 0, time.monotonic()) if resumed else None

    def serve(plain: socket.socket) -> None:
        ByHand(plain, chain, key, flight, session.key if session else b"", behind).recv(1)

    with listening(serve) as port, connection(port, session) as tls:
        tls.do_handshake()
        assert tls.session_reused is resumed
        assert chain_of(tls) == ([] if resumed else chain)


@pytest.mark.parametrize(("flight", "resumed"), [(FULL, False), (RESUMED, True)])
def test_it_speaks_with_a_server_by_hand(flight, resumed):
    shaken(flight, resumed=resumed)


@pytest.mark.parametrize(
    ("flight", "resumed"),
    [
        ((EXTENSIONS, CERTIFICATE, FINISHED), False),
        ((CERTIFICATE, VERIFY, FINISHED), False),
        ((EXTENSIONS, EXTENSIONS, CERTIFICATE, VERIFY, FINISHED), False),
        ((EXTENSIONS, CERTIFICATE, VERIFY, VERIFY, FINISHED), False),
        ((EXTENSIONS, CERTIFICATE, CERTIFICATE, VERIFY, FINISHED), False),
        ((CERTIFICATE, EXTENSIONS, VERIFY, FINISHED), False),
        ((EXTENSIONS, CERTIFICATE, VERIFY, 13, FINISHED), False),
        ((FINISHED,), True),
        (FULL, True),
    ],
)
def test_the_messages_of_the_server_come_in_their_order_and_once(flight, resumed):
    with pytest.raises(TlsError, match="is due"):
        shaken(flight, resumed=resumed)


def test_nothing_comes_behind_the_finished_under_its_keys():
    ticket = tls13._message(tls13.TICKET, bytes(20))
    with pytest.raises(TlsError, match="behind the last one of its keys"):
        shaken(FULL, resumed=False, behind=ticket)


def test_nothing_comes_in_the_clear_once_there_are_keys():
    with pytest.raises(TlsError, match="not sealed"):
        shaken((), resumed=False)
