"""The development CA and certificate: usable, kept, renewed, private, and of no use elsewhere."""

from __future__ import annotations

import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from botproxy.cli.development import Development, certificate

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def handshake(files: Development, name: str, chain: Path | None = None, key: Path | None = None) -> None:
    """A TLS handshake in memory, verified against the development CA for `name`."""
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(chain or files.chain, key or files.key)
    client_context = ssl.create_default_context(cafile=files.ca)
    client = client_context.wrap_bio(ours, theirs, server_hostname=name)
    server = server_context.wrap_bio(theirs, ours, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_clients_that_trust_the_ca_accept_every_name_of_this_machine(tmp_path, name):
    handshake(certificate(tmp_path / "development", NOW), name)


def test_a_second_run_uses_what_the_first_one_made(tmp_path):
    first = certificate(tmp_path, NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    second = certificate(tmp_path, NOW + 300 * DAY)
    assert (first.made, second.made) == (True, False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nobody_else_can_read_the_directory_or_a_file(tmp_path):
    directory = tmp_path / "new" / "development"
    certificate(directory, NOW)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


def test_permissions_that_somebody_opened_are_closed_again(tmp_path):
    files = certificate(tmp_path, NOW)
    tmp_path.chmod(0o755)
    files.key.chmod(0o644)
    assert certificate(tmp_path, NOW).made is False
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600


def test_the_certificate_is_renewed_in_its_last_30_days_by_the_same_ca(tmp_path):
    files = certificate(tmp_path, NOW)
    ca = files.ca.read_bytes()
    ends = x509.load_pem_x509_certificate(files.chain.read_bytes()).not_valid_after_utc
    assert certificate(tmp_path, ends - 31 * DAY).made is False
    assert certificate(tmp_path, ends - 29 * DAY).made is True
    assert files.ca.read_bytes() == ca


@pytest.mark.parametrize("name", ["localhost.pem", "localhost-key.pem"])
@pytest.mark.parametrize("content", [b"", b"not a certificate", None])
def test_a_broken_certificate_is_made_anew_by_the_same_ca(tmp_path, name, content):
    files = certificate(tmp_path, NOW)
    ca = files.ca.read_bytes()
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    again = certificate(tmp_path, NOW)
    assert again.made is True
    assert files.ca.read_bytes() == ca
    handshake(again, "localhost")


@pytest.mark.parametrize("name", ["ca.pem", "ca-key.pem"])
def test_a_broken_ca_is_replaced_together_with_its_certificate(tmp_path, name):
    certificate(tmp_path, NOW)
    (tmp_path / name).write_bytes(b"broken")
    again = certificate(tmp_path, NOW)
    assert again.made is True
    handshake(again, "localhost")


def test_a_key_of_another_pair_is_noticed(tmp_path):
    files = certificate(tmp_path / "one", NOW)
    other = certificate(tmp_path / "two", NOW)
    files.key.write_bytes(other.key.read_bytes())
    assert certificate(tmp_path / "one", NOW).made is True


def test_a_pair_of_another_ca_is_noticed(tmp_path):
    files = certificate(tmp_path / "one", NOW)
    other = certificate(tmp_path / "two", NOW)
    files.key.write_bytes(other.key.read_bytes())
    files.chain.write_bytes(other.chain.read_bytes())
    assert certificate(tmp_path / "one", NOW).made is True


def test_a_pair_without_the_names_of_this_machine_is_noticed(tmp_path):
    files = certificate(tmp_path, NOW)
    chain, key = _signed_by_the_ca_of(files, "bot.example.com")
    files.chain.write_bytes(chain)
    files.key.write_bytes(key)
    assert certificate(tmp_path, NOW).made is True
    handshake(files, "localhost")


def test_a_stolen_ca_key_is_worth_nothing_for_other_names(tmp_path):
    files = certificate(tmp_path / "development", NOW)
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    pem, key_pem = _signed_by_the_ca_of(files, "bot.example.com")
    chain.write_bytes(pem)
    key.write_bytes(key_pem)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        handshake(files, "bot.example.com", chain, key)


def test_no_half_written_file_stays_behind(tmp_path):
    certificate(tmp_path, NOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ca-key.pem",
        "ca.pem",
        "localhost-key.pem",
        "localhost.pem",
    ]


def _signed_by_the_ca_of(files: Development, name: str) -> tuple[bytes, bytes]:
    """Chain and key (PEM) for `name`, signed with the key of the development CA."""
    ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
    ca_key = serialization.load_pem_private_key((files.ca.parent / "ca-key.pem").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    pem = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + 90 * DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .sign(ca_key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem, key_pem
