"""Which certificate a client gets, over real handshakes in memory, and that a swap loses no session."""

from __future__ import annotations

import fcntl
import hashlib
import os
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botproxy.config import schema
from botproxy.tls.context import (
    CertificateSet,
    Served,
    certificate_context,
    listener_context,
    sealed_memfd,
)
from tests import certs
from tests.certs import Authority, Issued, dual, load

TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def fingerprints(served: Served | None) -> frozenset[str]:
    assert served is not None
    return served.fingerprints


class Wire:
    """A client and a server in memory."""

    def __init__(
        self,
        listener: ssl.SSLContext,
        client: ssl.SSLContext,
        name: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(down, up, server_hostname=name, session=session)
        self.server = listener.wrap_bio(up, down, server_side=True)
        waiting = [self.client, self.server]
        while waiting:
            for end in list(waiting):
                try:
                    end.do_handshake()
                    waiting.remove(end)
                except ssl.SSLWantReadError:
                    pass
        self.server.write(b"x")  # takes the tickets of TLS 1.3 along
        assert self.client.read(1) == b"x"

    @property
    def fingerprint(self) -> str:
        leaf = self.client.getpeercert(binary_form=True)
        assert leaf is not None
        return hashlib.sha256(leaf).hexdigest()

    def sent(self) -> int:
        """How many certificates the server sent."""
        chain = self.client._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
        return len(chain)


class Front:
    """A listener context whose callback serves what `current` selects, as a worker does."""

    def __init__(self, current: CertificateSet, tls: schema.Tls | None = None) -> None:
        self.current = current
        self.listener = listener_context(tls or schema.Tls())

        def choose(
            connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext
        ) -> ssl.AlertDescription | None:
            served = self.current.select(name)
            if served is None:
                return ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
            connection.context = served.context
            return None

        self.listener.sni_callback = choose


def client(
    ca: Authority | None = None, *, version: ssl.TLSVersion | None = None, ciphers: str | None = None
) -> ssl.SSLContext:
    context = ca.trust() if ca else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if ciphers is not None:
        context.set_ciphers(ciphers)
    return context


# Selection


def test_an_exact_name_wins_over_a_wildcard_and_a_wildcard_over_the_default(ca: Authority):
    default, wild, exact = ca.issue("other.test"), ca.issue("*.a.test"), ca.issue("x.a.test")
    front = Front(load(default, wild, exact))
    for name, expected in [
        ("x.a.test", exact),
        ("X.A.Test", exact),
        ("y.a.test", wild),
        ("a.test", default),
        ("x.y.a.test", default),
        ("other.test", default),
        ("unknown.test", default),
        (None, default),
    ]:
        assert Wire(front.listener, client(), name).fingerprint == expected.fingerprint, name


def test_one_trailing_dot_does_not_matter(ca: Authority):
    both = load(ca.issue("other.test"), ca.issue("a.test"))
    assert both.select("a.test.") is both.select("a.test")
    assert both.select("a.test..") is both.default


def test_strict_refuses_unknown_names_and_clients_without_a_name(ca: Authority):
    front = Front(load(ca.issue("a.test"), strict=True))
    assert Wire(front.listener, client(), "a.test").fingerprint
    for name in ("unknown.test", None):
        with pytest.raises(ssl.SSLError) as caught:
            Wire(front.listener, client(), name)
        # Whichever end is asked first tells of it.
        assert "UNRECOGNIZED_NAME" in (caught.value.reason or "") or caught.value.reason == "CALLBACK_FAILED"


@given(st.one_of(st.none(), st.text(), st.binary().map(lambda raw: raw.decode("latin-1"))))
def test_no_name_makes_select_raise(name: str | None):
    assert SELECTABLE.select(name) in (SELECTABLE.default, SELECTABLE.select("a.test"))


SELECTABLE = load(certs.self_signed("a.test", "*.b.test"))


def test_a_leading_dot_is_no_label(ca: Authority):
    assert load(ca.issue("*.a.test"), strict=True).select(".a.test") is None


def test_hosts_and_serves_know_every_name(ca: Authority):
    both = load(ca.issue("a.test", "192.0.2.7"), ca.issue("*.b.test", "2001:db8::7"))
    assert sorted(both.hosts()) == ["*.b.test", "192.0.2.7", "2001:db8::7", "a.test"]
    for host in ("a.test", "x.b.test", "192.0.2.7", "[2001:db8::7]"):
        assert both.serves(host), host
    for host in ("b.test", "x.a.test", "192.0.2.8", "[2001:db8::8]", ""):
        assert not both.serves(host), host


def test_of_two_certificates_of_one_key_type_the_first_is_served(ca: Authority):
    first, second = ca.issue("a.test"), ca.issue("a.test", "b.test")
    both = load(first, second)
    assert fingerprints(both.select("a.test")) == {first.fingerprint}
    assert fingerprints(both.select("b.test")) == {second.fingerprint}


def test_hsts_is_promised_only_when_every_pair_of_a_name_allows_it(ca: Authority):
    good, staging = ca.issue("a.test"), certs.root("(STAGING) Root").issue("a.test", key=certs.rsa_key())
    assert load(good).default.hsts
    assert not load(good, staging).default.hsts
    assert not load(certs.self_signed("a.test")).default.hsts


# Two key types


def test_clients_get_the_key_type_they_understand(ca: Authority):
    ecdsa, rsa = dual(ca)
    front = Front(load(ecdsa, rsa))
    modern = Wire(front.listener, client(), "a.test")
    assert modern.fingerprint == ecdsa.fingerprint
    assert modern.sent() == 2
    old = Wire(front.listener, client(version=TLS_1_2, ciphers="ECDHE+aRSA"), "a.test")
    assert old.fingerprint == rsa.fingerprint
    assert old.sent() == 2
    assert Wire(front.listener, client(), "b.test").fingerprint == rsa.fingerprint


def test_the_default_speaks_both_key_types_of_the_first_certificates_name(ca: Authority):
    ecdsa, rsa = dual(ca)
    assert load(rsa, ecdsa).default.fingerprints == {rsa.fingerprint, ecdsa.fingerprint}


def test_an_exact_name_of_one_type_is_joined_by_a_wildcard_of_the_other(ca: Authority):
    ecdsa, rsa = ca.issue("x.a.test"), ca.issue("*.a.test", key=certs.rsa_key())
    both = load(ecdsa, rsa)
    assert fingerprints(both.select("x.a.test")) == {ecdsa.fingerprint, rsa.fingerprint}
    assert fingerprints(both.select("y.a.test")) == {rsa.fingerprint}


def test_names_of_the_same_pairs_share_one_context(ca: Authority):
    served = load(ca.issue("a.test", "b.test", "*.c.test"))
    assert len(served.each()) == 1


# What is sent and spoken


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_clients_that_know_only_the_root_accept_the_chain(ca: Authority, version: ssl.TLSVersion):
    issued = ca.intermediate("Lower").issue("a.test")
    assert ca.root is not None
    messy = issued.with_chain(*reversed(issued.chain), ca.root)
    wire = Wire(Front(load(messy)).listener, client(ca, version=version), "a.test")
    assert wire.sent() == 3
    assert wire.client.version() == ("TLSv1.2" if version is TLS_1_2 else "TLSv1.3")


def test_alpn_is_http_1_1(ca: Authority):
    offering = client()
    offering.set_alpn_protocols(["h2", "http/1.1"])
    assert (
        Wire(Front(load(ca.issue("a.test"))).listener, offering).client.selected_alpn_protocol() == "http/1.1"
    )


def test_the_policy_is_the_listeners():
    context = listener_context(schema.Tls())
    assert context.minimum_version is TLS_1_2
    assert context.num_tickets == 1
    wanted = ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    assert context.options & wanted == wanted
    assert not context.options & (ssl.OP_IGNORE_UNEXPECTED_EOF | ssl.OP_NO_TICKET)
    old = [c["name"] for c in context.get_ciphers() if c["protocol"] != "TLSv1.3"]
    assert old
    assert all(name.startswith("ECDHE-") for name in old)
    assert all("GCM" in name or "CHACHA20" in name for name in old)


@pytest.mark.parametrize(("minimum", "accepted"), [("1.2", True), ("1.3", False)])
def test_the_minimum_version_is_kept(ca: Authority, minimum: str, accepted: bool):
    front = Front(load(ca.issue("a.test")), schema.Tls.model_validate({"min_version": minimum}))
    old = client(version=TLS_1_2)
    if accepted:
        assert Wire(front.listener, old).client.version() == "TLSv1.2"
    else:
        with pytest.raises(ssl.SSLError):
            Wire(front.listener, old)


def test_a_weak_cipher_finds_no_partner(ca: Authority):
    front = Front(load(ca.issue("a.test", key=certs.rsa_key())))
    with pytest.raises(ssl.SSLError):
        Wire(front.listener, client(version=TLS_1_2, ciphers="ECDHE-RSA-AES256-SHA384:AES256-GCM-SHA384"))


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_an_old_ticket_resumes_after_a_swap_and_new_handshakes_get_the_new_certificate(
    ca: Authority, version: ssl.TLSVersion
):
    old, new = ca.issue("a.test"), ca.issue("a.test")
    front = Front(load(old))
    visitor = client(version=version)
    first = Wire(front.listener, visitor, "a.test")
    assert not first.client.session_reused
    front.current = load(new)
    again = Wire(front.listener, visitor, "a.test", session=first.client.session)
    assert again.client.session_reused
    fresh = Wire(front.listener, visitor, "a.test")
    assert not fresh.client.session_reused
    assert fresh.fingerprint == new.fingerprint


# Files in memory


def test_a_memfd_cannot_be_changed_and_is_not_inherited():
    fd = sealed_memfd(b"certificate")
    try:
        assert os.pread(fd, 100, 0) == b"certificate"
        assert not os.get_inheritable(fd)
        assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:botproxy-cert")
        for change in (
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.ftruncate(fd, 0),
            lambda: os.ftruncate(fd, 100),
            lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0),
        ):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(fd)


def test_loading_leaves_no_descriptor_behind(ca: Authority):
    before = sorted(os.listdir("/proc/self/fd"))
    load(*dual(ca))
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("password", [None, b"sesame"])
def test_a_pair_that_openssl_refuses_raises_and_never_asks_the_terminal(
    wrong_key: Issued, password: bytes | None
):
    data = wrong_key.chain_pem + certs.key_pem(wrong_key.key, password)
    fd = sealed_memfd(data)
    try:
        with pytest.raises((ssl.SSLError, ValueError)):
            certificate_context([fd])
    finally:
        os.close(fd)
