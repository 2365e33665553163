"""Handshakes: which certificate, which versions, what is refused and how, and what remains of a refusal."""

from __future__ import annotations

import json
import ssl
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests import certs
from tests.certs import Authority
from tests.e2e.conftest import Start
from tests.harness import Bot, Proxied
from tests.wire import HelloFor, Wire, get

ALERT_UNRECOGNIZED_NAME = 112
ALERT_NO_APPLICATION_PROTOCOL = 120


@pytest.fixture(scope="module")
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


@pytest.fixture(scope="module")
def front(start_once: Start, bot: Bot) -> Proxied:
    return start_once(bot.url, workers=2, timeouts={"handshake": "1s"})


def client_context(trust: Callable[[], ssl.SSLContext] | None = None) -> ssl.SSLContext:
    """A client that takes any certificate."""
    context = trust() if trust else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def served(front: Proxied, name: str | None, context: ssl.SSLContext | None = None) -> x509.Certificate:
    """The certificate that a client gets that asks for `name`."""
    with front.connect(context or client_context(), name) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        der = client.sock.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def alert_in(data: bytes) -> int | None:
    """Number of the alert that the first record of `data` is."""
    return data[6] if len(data) >= 7 and data[0] == 21 else None


# Other protocols


@pytest.mark.parametrize(
    "sent",
    [get(), b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000],
    ids=["GET", "POST"],
)
def test_plain_http_on_the_tls_port_gets_a_readable_400(front: Proxied, sent: bytes) -> None:
    with Wire(front.tcp()) as client:
        client.send(sent)
        answer = client.read_message()
    assert answer.status == 400
    assert b"https" in answer.body
    assert answer.value("connection") == "close"
    assert answer.value("x-content-type-options") == "nosniff"
    assert "strict-transport-security" not in answer


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 100, b"\x80\x2e\x01\x03\x01" + b"x" * 50, b"\x16\x03\x01\x00\x05hello"]
)
def test_garbage_ends_the_connection_and_nothing_else(
    front: Proxied, trust: ssl.SSLContext, garbage: bytes
) -> None:
    since = len(front.log.lines)
    with Wire(front.tcp()) as client:
        client.send(garbage)
        client.send_end()
        client.read_to_end()
    with front.connect(trust) as client:
        assert client.request(get()).status == 200
    assert front.log.lines[since:] == [], "a scan may not fill the log"


# ALPN


def test_only_foreign_protocols_are_refused_with_their_alert(front: Proxied, trust: ssl.SSLContext) -> None:
    for protocols in (["ftp"], ["h2"], ["h2", "acme-tls/1"]):
        context = client_context()
        context.set_alpn_protocols(protocols)
        with front.tcp() as sock:
            sock.sendall(HelloFor(context).data)
            data, _ = Wire(sock).read_to_end()
        assert alert_in(data) == ALERT_NO_APPLICATION_PROTOCOL


def test_our_protocol_is_chosen_among_others(front: Proxied) -> None:
    for protocols, chosen in ((["h2", "http/1.1"], "http/1.1"), (["http/1.1"], "http/1.1"), ([], None)):
        context = client_context()
        if protocols:
            context.set_alpn_protocols(protocols)
        with front.connect(context) as client:
            assert isinstance(client.sock, ssl.SSLSocket)
            assert client.sock.selected_alpn_protocol() == chosen
            assert client.request(get()).status == 200


# Names


@pytest.fixture(scope="module")
def sites(ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("sites")
    issued = {
        "first": ca.issue("localhost"),
        "wild": ca.issue("*.example.com"),
        "exact": ca.issue("exact.example.com"),
        "rsa": ca.issue("both.example.com", key=certs.rsa_key()),
        "ecdsa": ca.issue("both.example.com"),
    }
    written = [one.write(directory, name) for name, one in issued.items()]
    return [{"chain": pair.chain, "key": pair.key} for pair in written]


@pytest.fixture(scope="module")
def many(start_once: Start, bot: Bot, sites: list[dict[str, Any]]) -> Proxied:
    return start_once(bot.url, certificates=sites)


def names_of(certificate: x509.Certificate) -> list[str]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return list(extension.value.get_values_for_type(x509.DNSName))


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("localhost", "localhost"),
        ("exact.example.com", "exact.example.com"),
        ("EXACT.Example.COM", "exact.example.com"),
        ("any.example.com", "*.example.com"),
        ("deeper.any.example.com", "localhost"),
        ("example.com", "localhost"),
        ("unknown.example.org", "localhost"),
        (None, "localhost"),
    ],
)
def test_the_certificate_is_chosen_by_name(many: Proxied, asked: str | None, got: str) -> None:
    assert names_of(served(many, asked)) == [got]


def test_a_name_may_have_rsa_and_ecdsa(many: Proxied) -> None:
    for ciphers, kind in (("ECDHE+aRSA", rsa.RSAPublicKey), ("ECDHE+aECDSA", ec.EllipticCurvePublicKey)):
        context = client_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
        certificate = served(many, "both.example.com", context)
        assert names_of(certificate) == ["both.example.com"]
        assert isinstance(certificate.public_key(), kind)


def test_strict_sni_refuses_unknown_names(start: Start, bot: Bot, sites: list[dict[str, Any]]) -> None:
    front = start(bot.url, certificates=sites, tls={"strict_sni": True})
    assert names_of(served(front, "exact.example.com")) == ["exact.example.com"]
    for name in ("unknown.example.org", None):
        with front.tcp() as sock:
            sock.sendall(HelloFor(client_context(), name).data)
            data, _ = Wire(sock).read_to_end()
        assert alert_in(data) == ALERT_UNRECOGNIZED_NAME


# Hellos


def test_a_hello_in_single_bytes_is_served(front: Proxied) -> None:
    hello = HelloFor(client_context())
    with front.tcp() as sock:
        for index in range(len(hello.data)):
            sock.sendall(hello.data[index : index + 1])
        hello.finish(sock)
        assert b" 200 " in hello.exchange(sock, get())


def test_a_hello_in_many_records_is_served(front: Proxied) -> None:
    hello = HelloFor(client_context())
    message = hello.data[5:]
    pieces = [message[at : at + 50] for at in range(0, len(message), 50)]
    with front.tcp() as sock:
        for piece in pieces:
            sock.sendall(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece)
        hello.finish(sock)
        assert b" 200 " in hello.exchange(sock, get())


def test_clear_text_behind_the_hello_is_never_a_request(front: Proxied, bot: Bot) -> None:
    hello = HelloFor(client_context())
    before = len(bot.requests)
    with front.tcp() as sock:
        sock.sendall(hello.data + get("/smuggled"))
        Wire(sock).read_to_end()
    assert len(bot.requests) == before


# What the client thinks of us


def _alerting(front: Proxied, context: ssl.SSLContext, name: str = "localhost") -> str:
    """The alert in the access log after a client of `context` refused our certificate."""
    since = len(front.access.lines)
    with pytest.raises(ssl.SSLCertVerificationError):
        front.connect(context, name)
    line = front.access.wait_for(lambda line: "alert" in line and bool(json.loads(line)["alert"]), since)
    return str(json.loads(line)["alert"])


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the socket of a failed connect
def test_a_client_that_does_not_know_our_ca_leaves_its_alert(front: Proxied) -> None:
    context = certs.root().trust()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, version
        assert _alerting(front, context) == "unknown_ca"


def test_a_client_that_finds_another_name_leaves_its_alert(front: Proxied, trust: ssl.SSLContext) -> None:
    assert _alerting(front, trust, "another.example.com") == "bad_certificate"


def test_a_client_that_finds_us_expired_leaves_its_alert(
    start: Start, bot: Bot, ca: Authority, trust: ssl.SSLContext, open_directory: Path
) -> None:
    pair = ca.issue("localhost", not_before=certs.NOW - 9 * certs.DAY, not_after=certs.NOW - certs.DAY).write(
        open_directory
    )
    front = start(bot.url, certificates=[{"chain": pair.chain, "key": pair.key}])
    assert _alerting(front, trust) == "certificate_expired"


# Versions, suites, tickets, ends


def test_old_versions_are_refused(front: Proxied) -> None:
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        context = client_context()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
        context.set_ciphers("ALL:@SECLEVEL=0")
        with front.tcp() as sock:
            sock.sendall(HelloFor(context).data)
            data, _ = Wire(sock).read_to_end()
        assert alert_in(data) == 70, "protocol_version"


@pytest.mark.parametrize(
    "ciphers", ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "DHE+AESGCM"]
)
def test_weak_suites_are_refused(many: Proxied, ciphers: str) -> None:
    context = client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    with many.tcp() as sock:
        sock.sendall(HelloFor(context, "both.example.com").data)
        data, _ = Wire(sock).read_to_end()
    assert alert_in(data) == 40, "handshake_failure"


def test_tls_1_2_can_be_turned_off(start: Start, bot: Bot, trust: ssl.SSLContext) -> None:
    front = start(bot.url, tls={"min_version": "1.3"})
    old = client_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with front.tcp() as sock:
        sock.sendall(HelloFor(old).data)
        data, _ = Wire(sock).read_to_end()
    assert alert_in(data) == 70
    with front.connect(trust) as client:
        assert client.request(get()).status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_in_every_worker(front: Proxied, ca: Authority, version: ssl.TLSVersion) -> None:
    """Twenty connections with one ticket: both workers get some."""
    context = ca.trust()
    context.minimum_version = context.maximum_version = version
    with front.connect(context) as client:
        assert client.request(get()).status == 200  # with it comes the ticket of TLS 1.3
        assert isinstance(client.sock, ssl.SSLSocket)
        session = client.sock.session
    with ExitStack() as stack:
        for _ in range(20):
            tcp = stack.enter_context(front.tcp())
            tls = stack.enter_context(context.wrap_socket(tcp, server_hostname="localhost", session=session))
            assert tls.session_reused
            assert Wire(tls).request(get()).status == 200


def test_an_orderly_end_says_close_notify(front: Proxied, trust: ssl.SSLContext) -> None:
    for request in (get("/", "Connection: close"), get(version="1.0"), b"nonsense\r\n\r\n"):
        with front.connect(trust) as client:
            client.send(request)
            data, in_order = client.read_to_end()
            assert data.startswith(b"HTTP/1.1 ")
            assert in_order


def test_the_access_log_says_how_it_was_shaken(front: Proxied, ca: Authority) -> None:
    context = ca.trust()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with front.connect(context) as client:
        assert client.request(get("/shaken")).status == 200
    record = front.wait_record(path="/shaken")
    assert "TLSv1.2" in record.values()
