"""What is read from PEM files, and which words are found for files that are none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs12,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from botproxy.tls.certificates import parse
from botproxy.tls.pem import CertificateError, read_chain, read_key
from tests import certs
from tests.certs import Issued


@pytest.fixture(scope="module")
def site(cert_for: Callable[..., Issued]) -> Issued:
    return cert_for("bot.example.com")


def refusal_of_chain(data: bytes) -> CertificateError:
    with pytest.raises(CertificateError) as caught:
        read_chain(data)
    assert caught.value.part == "chain"
    assert caught.value.sentence
    assert caught.value.fix
    return caught.value


def refusal_of_key(data: bytes, password: bytes | None = None) -> CertificateError:
    with pytest.raises(CertificateError) as caught:
        read_key(data, password)
    assert caught.value.part == "key"
    assert caught.value.sentence
    assert caught.value.fix
    return caught.value


def test_a_chain_is_read_in_the_order_of_the_file(site: Issued):
    assert read_chain(site.chain_pem) == site.chain


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: b"subject=CN = bot.example.com\nissuer=...\n" + data + b"\n\n",
        lambda data: data.replace(b"-----\n-----", b"----------"),
        lambda data: data.rstrip(b"\n"),
        lambda data: data.replace(b" CERTIFICATE-", b" X509 CERTIFICATE-"),
    ],
    ids=[
        "crlf",
        "byte order mark",
        "text around",
        "blocks without line end between",
        "no last newline",
        "x509",
    ],
)
def test_what_cannot_be_misunderstood_is_accepted(site: Issued, change: Callable[[bytes], bytes]):
    assert read_chain(change(site.chain_pem)) == site.chain


def test_chain_and_key_may_share_one_file(site: Issued):
    both = site.key_pem + site.chain_pem
    assert read_chain(both) == site.chain
    assert parse(both, both).key_matches


@pytest.mark.parametrize("data", [b"", b" \n\t\n"])
def test_an_empty_file_is_called_empty(data: bytes):
    assert refusal_of_chain(data).rule == "empty"
    assert refusal_of_key(data).rule == "empty"


def test_exchanged_files_are_told_apart(site: Issued):
    assert refusal_of_chain(site.key_pem).rule == "key_in_chain"
    assert refusal_of_key(site.chain_pem).rule == "chain_in_key"


def test_der_gets_the_command_that_converts_it(site: Issued):
    refusal = refusal_of_chain(site.leaf.public_bytes(Encoding.DER))
    assert refusal.rule == "der"
    assert "openssl x509 -inform der" in refusal.fix
    der = site.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    refusal = refusal_of_key(der)
    assert refusal.rule == "der"
    assert "openssl pkey -inform der" in refusal.fix


def test_pkcs12_gets_the_command_that_converts_it(site: Issued):
    assert not isinstance(site.key, str)
    data = pkcs12.serialize_key_and_certificates(
        b"site", site.key, site.leaf, None, BestAvailableEncryption(b"x")
    )
    refusal = refusal_of_chain(data)
    assert refusal.rule == "pkcs12"
    assert "-nokeys" in refusal.fix
    refusal = refusal_of_key(data)
    assert refusal.rule == "pkcs12"
    assert "-nocerts" in refusal.fix


@pytest.mark.parametrize(
    ("label", "rule"),
    [(b"CERTIFICATE REQUEST", "request"), (b"PKCS7", "pkcs7"), (b"DH PARAMETERS", "no_certificate")],
)
def test_other_pem_blocks_are_named(site: Issued, label: bytes, rule: str):
    assert refusal_of_chain(certs.pem(site.leaf).replace(b"CERTIFICATE", label)).rule == rule


def test_a_public_key_is_no_private_key(site: Issued):
    public = site.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert refusal_of_key(public).rule == "no_key"


@pytest.mark.parametrize("data", [b"hello\n", b"\x00" * 40, b"\xff\xfe" + "-----".encode("utf-16-le")])
def test_anything_else_is_not_pem(data: bytes):
    assert refusal_of_chain(data).rule == "not_pem"
    assert refusal_of_key(data).rule == "not_pem"


def test_a_damaged_certificate_is_named_by_its_number(site: Issued):
    first, second = certs.pem(site.chain[0]), certs.pem(site.chain[1])
    lines = second.splitlines()
    damaged = b"\n".join([lines[0], b"AAAA" + lines[1][4:], *lines[2:]])
    refusal = refusal_of_chain(first + damaged)
    assert refusal.rule == "unparsable"
    assert "certificate 2" in refusal.sentence


def test_a_block_that_ends_as_another_is_damaged(site: Issued):
    data = site.chain_pem.replace(b"END CERTIFICATE", b"END PUBLIC KEY", 1)
    assert refusal_of_chain(data).rule == "cut"


def test_several_keys_are_refused(site: Issued):
    assert refusal_of_key(site.key_pem + certs.key_pem(certs.ecdsa_key())).rule == "several_keys"


def test_the_parameters_that_openssl_writes_before_an_ec_key_do_not_matter(site: Issued):
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    assert isinstance(read_key(parameters + site.key_pem, None), ec.EllipticCurvePrivateKey)


def test_an_encrypted_key_opens_with_its_password_only(site: Issued):
    encrypted = certs.key_pem(site.key, b"sesame")
    assert certs.key_pem(read_key(encrypted, b"sesame")) == site.key_pem
    assert refusal_of_key(encrypted).rule == "password_missing"
    assert refusal_of_key(encrypted, b"").rule == "password_missing"
    refusal = refusal_of_key(encrypted, b"hunter2")
    assert refusal.rule == "password_wrong"
    assert "hunter2" not in refusal.sentence + refusal.fix


def test_the_old_way_to_encrypt_a_key_is_known(site: Issued):
    encrypted = certs.rsa_key().private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"sesame")
    )
    assert b"Proc-Type" in encrypted
    assert refusal_of_key(encrypted).rule == "password_missing"
    assert read_key(encrypted, b"sesame") is not None


def test_a_password_for_a_clear_key_does_not_matter(site: Issued):
    assert certs.key_pem(read_key(site.key_pem, b"sesame")) == site.key_pem


def test_keys_that_tls_does_not_know_are_refused(site: Issued):
    odd = dsa.generate_private_key(2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert refusal_of_key(odd).rule == "key_type"
    ssh = site.key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    assert refusal_of_key(ssh).rule == "key_format"


def test_a_file_above_one_mebibyte_is_refused(site: Issued):
    padding = b"#" * (1024 * 1024 - len(site.chain_pem))
    assert read_chain(padding[:-1] + b"\n" + site.chain_pem) == site.chain
    assert refusal_of_chain(padding + b"\n" + site.chain_pem).rule == "too_large"
    assert refusal_of_key(padding + b"\n" + site.chain_pem).rule == "too_large"


def test_a_collection_of_roots_is_no_chain(site: Issued):
    assert refusal_of_chain(certs.pem(site.leaf) * 33).rule == "too_many"


def test_a_chain_cut_at_any_byte_is_refused_except_after_a_whole_certificate(site: Issued):
    data = site.chain_pem
    end = len(certs.pem(site.leaf))
    whole = {end - 1, end, len(data) - 1}
    for cut in range(1, len(data)):
        if cut in whole:
            assert read_chain(data[:cut]) == site.chain[: 1 if cut <= end else 2]
        else:
            assert refusal_of_chain(data[:cut]).rule in ("cut", "not_pem"), cut


def test_a_key_cut_at_any_byte_is_refused(site: Issued):
    for cut in range(1, len(site.key_pem) - 1):
        assert refusal_of_key(site.key_pem[:cut]).rule in ("cut", "not_pem"), cut


def test_a_file_that_lost_its_beginning_is_refused_or_read_from_the_next_block(site: Issued):
    data = site.chain_pem
    for start in range(1, len(data)):
        try:
            assert read_chain(data[start:]) == site.chain[1:]
        except CertificateError:
            pass


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@example(data=None)
def test_no_bytes_make_anything_but_our_error(site: Issued, data: st.DataObject | None):
    chain, key = bytearray(site.chain_pem), bytearray(site.key_pem)
    if data is not None:
        for target in (chain, key):
            for _ in range(data.draw(st.integers(0, 3))):
                at = data.draw(st.integers(0, len(target) - 1))
                target[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    try:
        parse(bytes(chain), bytes(key), None)
    except CertificateError:
        pass
