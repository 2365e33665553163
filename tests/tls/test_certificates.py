"""What a certificate is, for whom it speaks, and the chain that is made of what a file held."""

from __future__ import annotations

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from botproxy.tls.certificates import Certificate, parse
from botproxy.tls.pem import CertificateError
from tests import certs
from tests.certs import Authority, Issued

COVERING = certs.self_signed("bot.example.com", "*.chat.example.com", "192.0.2.7", "2001:db8::7")


def read(issued: Issued) -> Certificate:
    return parse(issued.chain_pem, issued.key_pem)


def test_the_value_says_what_the_certificate_says(ca: Authority):
    issued = ca.issue("Bot.Example.COM", "www.example.com.", "192.0.2.7")
    certificate = read(issued)
    assert certificate.leaf == issued.leaf
    assert certificate.intermediates == ca.above
    assert certificate.key_type == "ecdsa"
    assert certificate.key_matches
    assert certificate.dns_names == ("bot.example.com", "www.example.com")
    assert certificate.addresses == ("192.0.2.7",)
    assert certificate.names == ("bot.example.com", "www.example.com", "192.0.2.7")
    assert certificate.not_before == certs.NOW - certs.DAY
    assert certificate.not_after == certs.NOW + 90 * certs.DAY
    assert certificate.serial == issued.leaf.serial_number
    assert certificate.issuer == "CN=Test Intermediate"
    der = issued.leaf.public_bytes(Encoding.DER)
    assert certificate.fingerprint == hashlib.sha256(der).hexdigest()
    spki = issued.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert certificate.spki == hashlib.sha256(spki).hexdigest()
    assert not certificate.is_self_signed


@pytest.mark.parametrize(
    ("key", "key_type"),
    [
        (certs.rsa_key(), "rsa"),
        (certs.ecdsa_key(), "ecdsa"),
        (ed25519.Ed25519PrivateKey.generate(), "ed25519"),
    ],
)
def test_the_key_type_is_the_leafs(ca: Authority, key: certs.Key, key_type: str):
    assert read(ca.issue("a.test", key=key)).key_type == key_type


def test_the_private_key_is_not_in_the_repr(ca: Authority):
    certificate = read(ca.issue("a.test"))
    assert b"PRIVATE KEY" in certificate.key
    assert "PRIVATE" not in repr(certificate)


def test_the_pem_is_read_back_as_the_same_certificate(ca: Authority):
    certificate = read(ca.issue("a.test"))
    assert parse(certificate.pem(), certificate.pem()) == certificate


@pytest.mark.parametrize(
    "name",
    [
        "bot.example.com",
        "BOT.example.com",
        "bot.example.com.",
        "a.chat.example.com",
        "*.chat.example.com",
        "192.0.2.7",
        "2001:db8::7",
        "[2001:DB8:0::7]",
    ],
)
def test_a_name_in_the_certificate_is_covered(name: str):
    assert read(COVERING).covers(name)


@pytest.mark.parametrize(
    "name",
    [
        "example.com",
        "a.bot.example.com",
        "chat.example.com",
        "a.b.chat.example.com",
        ".chat.example.com",
        "192.0.2.8",
        "2001:db8::8",
        "*.example.com",
        "",
        ".",
        "bot.example.com..",
        "[",
    ],
)
def test_any_other_name_is_not_covered(name: str):
    assert not read(COVERING).covers(name)


@given(st.text())
def test_no_text_makes_covers_raise(name: str):
    assert read(COVERING).covers(name) in (True, False)


@pytest.mark.parametrize("name", ["bot.example.com\x00.evil.test", "bot example.com", "", "b\x1bt"])
def test_a_name_that_no_host_can_have_is_refused(name: str):
    issued = certs.self_signed("placeholder", name)
    with pytest.raises(CertificateError) as caught:
        read(issued)
    assert caught.value.rule == "bad_name"
    assert caught.value.sentence.isprintable()


def test_a_name_outside_ascii_is_refused(ca: Authority):
    der = certs.self_signed("botX.example.com").leaf.public_bytes(Encoding.DER)
    forged = x509.load_der_x509_certificate(der.replace(b"botX.example.com", b"bot\xe9.example.com"))
    with pytest.raises(CertificateError) as caught:
        parse(certs.pem(forged), certs.key_pem(certs.ecdsa_key()))
    assert caught.value.rule in ("unparsable", "bad_name")


def test_a_key_type_that_servers_do_not_use_is_refused():
    issuer = certs.root()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a.test")])
    odd = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.certificate.subject)
        .public_key(ed448.Ed448PrivateKey.generate().public_key())
        .serial_number(1)
        .not_valid_before(certs.NOW)
        .not_valid_after(certs.NOW + certs.DAY)
    )
    assert isinstance(issuer.key, ec.EllipticCurvePrivateKey)
    leaf = odd.sign(issuer.key, hashes.SHA256())
    with pytest.raises(CertificateError) as caught:
        parse(certs.pem(leaf), certs.key_pem(certs.ecdsa_key()))
    assert caught.value.rule == "key_type"


def test_the_key_of_another_certificate_is_noticed(wrong_key: Issued):
    certificate = read(wrong_key)
    assert not certificate.key_matches
    assert certificate.leaf == wrong_key.leaf


def test_a_chain_in_any_order_is_sent_in_the_right_one(ca: Authority):
    below = ca.intermediate("Lower")
    issued = below.issue("a.test")
    leaf, lower, upper = issued.chain
    for order in ((leaf, upper, lower), (upper, lower, leaf), (lower, leaf, upper)):
        certificate = read(issued.with_chain(*order))
        assert certificate.leaf == leaf
        assert certificate.intermediates == (lower, upper)
        assert certificate.found == order


def test_roots_duplicates_and_strangers_are_not_sent(ca: Authority):
    issued = ca.issue("a.test")
    assert ca.root is not None
    stranger = certs.root("Elsewhere").intermediate().certificate
    certificate = read(issued.with_chain(issued.leaf, issued.leaf, *ca.above, ca.root, stranger, *ca.above))
    assert certificate.intermediates == ca.above


def test_two_are_the_same_when_clients_see_no_difference(ca: Authority, wrong_key: Issued):
    site = ca.issue("a.test")
    assert ca.root is not None
    one = site.certificate
    for chain in ((*site.chain, ca.root), (*site.chain, site.leaf), (*site.chain[1:], site.leaf)):
        assert one.is_same(site.with_chain(*chain).certificate)
    assert not one.is_same(site.with_chain(site.leaf).certificate)
    assert not one.is_same(ca.issue("a.test", key=site.key).certificate)
    assert not one.is_same(site.with_key(wrong_key.key).certificate)


def test_an_intermediate_of_the_right_name_and_the_wrong_key_is_not_sent(ca: Authority):
    issued = ca.issue("a.test")
    impostor = certs.root().intermediate().certificate
    assert impostor.subject == ca.certificate.subject
    assert read(issued.with_chain(issued.leaf, impostor)).intermediates == ()


def test_both_ways_up_of_a_cross_signed_ca_are_sent(ca: Authority):
    issued = ca.issue("a.test")
    other = certs.root("Other Root")
    cross = certs.build("Test Intermediate", ca.key, issuer=other.certificate, signer=other.key, ca=True)
    certificate = read(issued.with_chain(issued.leaf, cross, *ca.above))
    assert certificate.intermediates == (cross, *ca.above)


def test_cas_that_signed_each_other_are_sent_once():
    root, one, two = certs.root(), certs.ecdsa_key(), certs.ecdsa_key()
    upper = certs.build("One", one, issuer=root.certificate, signer=root.key, ca=True)
    second = certs.build("Two", two, issuer=upper, signer=one, ca=True)
    crossed = certs.build("One", one, issuer=second, signer=two, ca=True)
    issued = Authority(upper, one, (crossed, second, upper)).issue("a.test")
    assert read(issued).intermediates == (crossed, second, upper)


def test_a_self_signed_certificate_is_sent_alone():
    issued = certs.self_signed("a.test", ca=True)
    certificate = read(issued)
    assert certificate.is_self_signed
    assert certificate.leaf == issued.leaf
    assert certificate.intermediates == ()


def test_a_certificate_that_only_names_itself_as_issuer_is_not_self_signed():
    key = certs.ecdsa_key()
    leaf = certs.build("a.test", key, signer=certs.ecdsa_key(), names=("a.test",))
    assert leaf.issuer == leaf.subject
    assert not parse(certs.pem(leaf), certs.key_pem(key)).is_self_signed


def test_the_issuer_text_is_printable():
    odd = certs.root("Evil\x1b[31m\nCA")
    assert read(odd.issue("a.test")).issuer.isprintable()
