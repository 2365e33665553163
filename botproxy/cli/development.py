"""The development CA and the certificate for localhost that `botproxy demo` serves.

Both are made once and kept in one directory (0700, files 0600); what is broken,
or has less than 30 days left, is made anew. The CA can sign for this machine
alone (RFC 5280 section 4.2.1.10, name constraints), so that a copied CA key is
worth nothing elsewhere. Never touches a trust store.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NAMES: tuple[x509.GeneralName, ...] = (
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    x509.IPAddress(ipaddress.ip_address("::1")),
)

_CONSTRAINTS: tuple[x509.GeneralName, ...] = (
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.ip_network("127.0.0.1/32")),
    x509.IPAddress(ipaddress.ip_network("::1/128")),
)
_CA_LIFE = datetime.timedelta(days=3650)
# Above 398 days browsers refuse a certificate, whoever signed it.
_LIFE = datetime.timedelta(days=397)
_RENEW_BEFORE = datetime.timedelta(days=30)
# For clocks that disagree, in containers and virtual machines.
_BACKDATED = datetime.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Development:
    """Where the files are, and whether this run made them."""

    ca: Path
    chain: Path
    key: Path
    made: bool


def certificate(directory: Path, now: datetime.datetime) -> Development:
    """The certificate for localhost in `directory`, made or renewed when necessary.

    Raises OSError when the directory or a file cannot be written.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    ca_file, ca_key_file = directory / "ca.pem", directory / "ca-key.pem"
    chain_file, key_file = directory / "localhost.pem", directory / "localhost-key.pem"

    ca = _read(ca_file, ca_key_file, now)
    if ca is None:
        ca = _make_ca(now)
        _write(ca_file, ca_key_file, ca.key, ca.certificate)
    leaf = _read(chain_file, key_file, now)
    made = leaf is None or not _is_for_localhost(leaf, ca)
    if made:
        leaf = _make_leaf(ca, now)
        # With the CA behind it, so that nobody misses an intermediate.
        _write(chain_file, key_file, leaf.key, leaf.certificate, ca.certificate)
    return Development(ca_file, chain_file, key_file, made)


# Private


@dataclass(frozen=True, slots=True)
class _Pair:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def _read(certificate_file: Path, key_file: Path, now: datetime.datetime) -> _Pair | None:
    """The first certificate and the key; None when they are missing, broken, no pair, or near their end."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except (FileNotFoundError, ValueError, TypeError, UnsupportedAlgorithm):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        return None
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc - _RENEW_BEFORE:
        return None
    key_file.chmod(0o600)
    return _Pair(certificate, key)


def _is_for_localhost(leaf: _Pair, ca: _Pair) -> bool:
    try:
        leaf.certificate.verify_directly_issued_by(ca.certificate)
        names = leaf.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return set(NAMES) <= set(names)


def _make_ca(now: datetime.datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("botproxy development CA")
    certificate = (
        _builder(name, name, key, now, _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.NameConstraints(_CONSTRAINTS, None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _Pair(certificate, key)


def _make_leaf(ca: _Pair, now: datetime.datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_name("localhost"), ca.certificate.subject, key, now, _LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(NAMES), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False
        )
        .sign(ca.key, hashes.SHA256())
    )
    return _Pair(certificate, key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
    life: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now - _BACKDATED + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write(
    chain_file: Path, key_file: Path, key: ec.EllipticCurvePrivateKey, *chain: x509.Certificate
) -> None:
    """The key first: a certificate without its key would look complete."""
    pem = serialization.Encoding.PEM
    key_format, encryption = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    _write_file(key_file, key.private_bytes(pem, key_format, encryption))
    _write_file(chain_file, b"".join(certificate.public_bytes(pem) for certificate in chain))


def _write_file(path: Path, content: bytes) -> None:
    """Readable by nobody else at any moment, and never seen half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
