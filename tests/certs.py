"""Throw-away CAs and certificates, good and bad, for every test that needs one.

`root()` makes a CA, `Authority.intermediate()` one below it, `Authority.issue()` a server
certificate with its chain. The clock is real: what is issued is valid now unless the
caller says otherwise.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from botproxy.config import schema
from botproxy.tls.certificates import Certificate, parse
from botproxy.tls.context import CertificateSet, Handed, hand

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
MUST_STAPLE = x509.TLSFeature([x509.TLSFeatureType.status_request])


def ecdsa_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@lru_cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """Made once for each size: it takes long."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@dataclass(frozen=True)
class Issued:
    """A certificate, what its chain file holds, and its key."""

    chain: tuple[x509.Certificate, ...]
    key: Key = field(repr=False)

    @property
    def leaf(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def chain_pem(self) -> bytes:
        return pem(*self.chain)

    @property
    def key_pem(self) -> bytes:
        return key_pem(self.key)

    @property
    def certificate(self) -> Certificate:
        """As botproxy reads it."""
        return parse(self.chain_pem, self.key_pem)

    @property
    def fingerprint(self) -> str:
        return self.leaf.fingerprint(hashes.SHA256()).hex()

    def with_chain(self, *chain: x509.Certificate) -> Issued:
        """The same with another chain file."""
        return replace(self, chain=chain)

    def with_key(self, key: Key) -> Issued:
        return replace(self, key=key)

    def write(self, directory: Path, name: str = "site") -> schema.Certificate:
        """Both files on disk, as the configuration names them."""
        directory.mkdir(parents=True, exist_ok=True)
        chain, key = directory / f"{name}.pem", directory / f"{name}.key"
        chain.write_bytes(self.chain_pem)
        key.touch(mode=0o600)
        key.write_bytes(self.key_pem)
        return schema.Certificate(chain=str(chain), key=str(key))


@dataclass(frozen=True)
class Authority:
    """A CA; `above` are the intermediates that a server must send with what it issues."""

    certificate: x509.Certificate
    key: Key = field(repr=False)
    above: tuple[x509.Certificate, ...] = ()
    root: x509.Certificate | None = None

    def intermediate(self, name: str = "Test Intermediate") -> Authority:
        key = ecdsa_key()
        certificate = build(name, key, issuer=self.certificate, signer=self.key, ca=True)
        return Authority(certificate, key, (certificate, *self.above), self.root or self.certificate)

    def issue(
        self,
        *names: str,
        key: Key | None = None,
        not_before: datetime = NOW - DAY,
        not_after: datetime = NOW + 90 * DAY,
        extensions: tuple[x509.ExtensionType, ...] = (),
        digest: hashes.HashAlgorithm | None = None,
        ca: bool = False,
    ) -> Issued:
        key = key or ecdsa_key()
        leaf = build(
            names[0] if names else "nameless",
            key,
            issuer=self.certificate,
            signer=self.key,
            names=names,
            not_before=not_before,
            not_after=not_after,
            extensions=extensions,
            digest=digest,
            ca=ca,
        )
        return Issued((leaf, *self.above), key)

    def trust(self) -> ssl.SSLContext:
        """A client that trusts the root above this CA and nothing else."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=pem(self.root or self.certificate).decode())
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # set by some builds of Python
        return context


def root(name: str = "Test Root") -> Authority:
    key = ecdsa_key()
    return Authority(build(name, key, ca=True), key)


def self_signed(*names: str, ca: bool = False) -> Issued:
    key = ecdsa_key()
    return Issued((build(names[0], key, names=names, ca=ca),), key)


def build(
    subject: str,
    key: Key,
    *,
    issuer: x509.Certificate | None = None,
    signer: Key | None = None,
    names: tuple[str, ...] = (),
    not_before: datetime = NOW - 10 * DAY,
    not_after: datetime = NOW + 3650 * DAY,
    extensions: tuple[x509.ExtensionType, ...] = (),
    digest: hashes.HashAlgorithm | None = None,
    ca: bool = False,
) -> x509.Certificate:
    """One certificate; without `issuer` and `signer` it signs itself."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    signer = signer or key
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if names:
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    hashed = None if isinstance(signer, ed25519.Ed25519PrivateKey) else digest or hashes.SHA256()
    return builder.sign(signer, hashed)  # type: ignore[arg-type]


@contextmanager
def handed(*sites: Issued) -> Iterator[list[Handed]]:
    """As a worker gets them."""
    result = [hand(site.certificate) for site in sites]
    try:
        yield result
    finally:
        for each in result:
            os.close(each.fd)


def load(*sites: Issued, strict: bool = False) -> CertificateSet:
    """As a worker serves them."""
    with handed(*sites) as certificates:
        return CertificateSet.load(certificates, strict)


def dual(ca: Authority) -> tuple[Issued, Issued]:
    """An ECDSA and an RSA certificate for one name, from different intermediates."""
    return ca.issue("a.test"), root("Other").intermediate("Other Lower").issue(
        "a.test", "b.test", key=rsa_key()
    )


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def key_pem(key: Key, password: bytes | None = None) -> bytes:
    encryption: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
