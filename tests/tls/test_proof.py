"""What a proof accepts and what it refuses: real handshakes in memory, with the contexts that are served."""

from __future__ import annotations

import ssl
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from botproxy.config import schema
from botproxy.tls.context import CertificateSet, certificate_context, listener_context
from botproxy.tls.proof import ProofFailed, askable, client, distrust, is_askable, probe, prove, shake
from tests import certs
from tests.certs import DAY, NOW, Authority, Issued, dual, handed, load


def listener(minimum: str = "1.2") -> ssl.SSLContext:
    return listener_context(schema.Tls.model_validate({"min_version": minimum}))


def root_of(ca: Authority) -> x509.Certificate:
    assert ca.root is not None
    return ca.root


# The set


@pytest.mark.parametrize("minimum", ["1.2", "1.3"])
@pytest.mark.parametrize("every_name", [False, True])
def test_a_set_proves_all_it_serves(ca: Authority, minimum: str, every_name: bool):
    sites = ca.issue("a.test"), ca.issue("*.b.test", "192.0.2.7", "2001:db8::7"), *dual(ca)
    prove(load(*sites), listener(minimum), every_name=every_name)


def test_a_strict_set_proves_all_it_serves(ca: Authority):
    prove(load(ca.issue("a.test", "*.b.test"), strict=True), listener(), every_name=True)


@pytest.mark.parametrize(
    "key",
    [certs.rsa_key(), certs.ecdsa_key(), ed25519.Ed25519PrivateKey.generate()],
    ids=["rsa", "ecdsa", "ed25519"],
)
def test_every_key_type_is_proven(ca: Authority, key: certs.Key):
    prove(load(ca.issue("a.test", key=key)), listener(), every_name=True)


def test_a_curve_that_openssl_does_not_offer_fails_the_proof(ca: Authority):
    odd = ec.generate_private_key(ec.SECP256K1())
    with pytest.raises(ProofFailed, match="handshake with the certificate fails"):
        prove(load(ca.issue("a.test", key=odd)), listener())


@pytest.mark.parametrize("names", [("a.test",), ("*.a.test",)])
def test_a_certificate_that_is_not_what_it_is_said_to_be_fails_the_proof(
    ca: Authority, names: tuple[str, ...]
):
    with handed(ca.issue(*names)) as certificates:
        forged = [replace(each, fingerprint="0" * 64) for each in certificates]
        with pytest.raises(ProofFailed, match="is served as"):
            prove(CertificateSet.load(forged, False), listener())


def test_a_key_type_that_is_promised_and_not_served_fails_the_proof(ca: Authority):
    ecdsa, rsa = dual(ca)
    both = load(ecdsa, rsa).default
    alone = load(ecdsa)
    with pytest.raises(ProofFailed, match="is served as"):
        prove(replace(alone, default=replace(both, context=alone.default.context)), listener())


def test_every_name_is_asked_for_only_when_that_is_wanted(ca: Authority):
    """Who asks for the name gets nothing, although the certificate itself works."""
    served = load(ca.issue("a.test"), strict=True)
    unreachable = replace(served, exact={"A.TEST": served.default})
    prove(unreachable, listener())
    with pytest.raises(ProofFailed, match=r"A\.TEST is served another certificate"):
        prove(unreachable, listener(), every_name=True)


def test_a_wildcard_is_asked_for_by_a_name_below_it(ca: Authority):
    served = load(ca.issue("b.test"), ca.issue("*.a.test"), strict=True)
    assert askable("b.test") == "b.test"
    assert is_askable(askable("*.a.test"))
    assert served.select(askable("*.a.test")) is served.wildcards["a.test"]
    unreachable = replace(served, wildcards={"A.TEST": served.wildcards["a.test"]})
    prove(unreachable, listener())
    with pytest.raises(ProofFailed, match=r"\*\.A\.TEST is served another certificate"):
        prove(unreachable, listener(), every_name=True)


@pytest.mark.parametrize(
    "name",
    ["a..test", ".a.test", "x" * 64 + ".test", "*." + "x" * 64, "x." * 130],
    ids=["empty label", "leading dot", "long label", "long label of a wildcard", "long name"],
)
def test_a_name_that_no_client_can_send_is_not_asked_for(ca: Authority, name: str):
    """It stands in a certificate of a private CA, whose other names are served."""
    for names in ((name, "a.test"), ("a.test", name)):
        key = certs.ecdsa_key()
        leaf = certs.build("a.test", key, issuer=ca.certificate, signer=ca.key, names=names)
        prove(load(Issued((leaf,), key)), listener(), every_name=True)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("a.test", True),
        ("7.test", True),
        ("*.a.test", False),
        ("192.0.2.7", False),
        ("2001:db8::7", False),
    ],
)
def test_a_hello_holds_host_names_and_nothing_else(name: str, asked: bool):
    assert is_askable(name) is asked


# The probe


@pytest.mark.parametrize("minimum", ["1.2", "1.3"])
@pytest.mark.parametrize("name", ["a.test", "*.a.test", "192.0.2.7", "2001:db8::7", None])
def test_the_probe_sees_every_key_type_and_leaves_the_listener_alone(
    ca: Authority, minimum: str, name: str | None
):
    pairs = dual(ca)
    only_read = listener(minimum)
    assert probe(only_read, load(*pairs).default.context, name) == {pair.fingerprint for pair in pairs}
    assert only_read.sni_callback is None


def test_a_context_without_certificate_fails_the_probe():
    with pytest.raises(ProofFailed, match=r"NO_SHARED_CIPHER|NO_SUITABLE_SIGNATURE|ALERT"):
        probe(listener(), certificate_context([]), "a.test")


def test_a_handshake_says_which_certificate_was_shown(ca: Authority):
    site = ca.issue("a.test")
    for version in (None, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        assert shake(load(site).default.context, client(version), "a.test") == site.fingerprint


# What a strict client thinks


def test_a_whole_chain_to_an_anchor_is_trusted(ca: Authority):
    issued = ca.issue("a.test", "*.b.test")
    context = load(issued).default.context
    assert distrust(context, "a.test", [root_of(ca)]) is None
    assert distrust(context, askable("*.b.test"), [certs.root("Other").certificate, root_of(ca)]) is None


def test_a_chain_that_lacks_an_intermediate_is_not_trusted(ca: Authority):
    issued = ca.intermediate("Lower").issue("a.test")
    for cut in (issued.chain[:1], issued.chain[:2], (issued.chain[0], issued.chain[2])):
        context = load(issued.with_chain(*cut)).default.context
        assert "issuer" in (distrust(context, "a.test", [root_of(ca)]) or "")


def test_a_chain_to_nobody_is_not_trusted(ca: Authority):
    context = load(ca.issue("a.test")).default.context
    assert distrust(context, "a.test", []) is not None
    assert distrust(context, "a.test", [certs.root().certificate]) is not None


def test_an_intermediate_alone_is_no_root(ca: Authority):
    context = load(ca.issue("a.test")).default.context
    assert "issuer" in (distrust(context, "a.test", [ca.certificate]) or "")


def test_roots_of_the_system_are_known_without_being_told(
    ca: Authority, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    bundle = tmp_path_factory.mktemp("roots") / "roots.pem"
    bundle.write_bytes(certs.pem(root_of(ca)))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    assert distrust(load(ca.issue("a.test")).default.context, "a.test", []) is None


def test_an_issuer_that_may_not_sign_is_not_trusted():
    """Its signature is right, so only OpenSSL notices."""
    root, key = certs.root(), certs.ecdsa_key()
    middle = certs.build("No CA", key, issuer=root.certificate, signer=root.key)
    issued = Authority(middle, key, (middle,)).issue("a.test")
    assert distrust(load(issued).default.context, "a.test", [root.certificate]) == "invalid CA certificate"


def test_an_expired_chain_is_not_trusted(ca: Authority):
    key = certs.ecdsa_key()
    old = certs.build("Old", key, issuer=ca.certificate, signer=ca.key, not_after=NOW - DAY, ca=True)
    context = load(Authority(old, key, (old, *ca.above)).issue("a.test")).default.context
    assert "expired" in (distrust(context, "a.test", [root_of(ca)]) or "")
