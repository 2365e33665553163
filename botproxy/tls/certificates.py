"""One certificate with its intermediates and its key: what it is and for whom it speaks.

`parse` makes the value from the bytes of two files and puts the chain into the order
in which it is sent; it refuses only what cannot be served at all. Whether it should
be served (expired, wrong name, chain incomplete) is said by `tls.rules`. The private
key is in the value, but not in its `repr`.

Pure: no clock, no files. Before: `tls.pem`. After: `tls.rules`, `keeper.load`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from botproxy.tls.pem import CertificateError, Key, read_chain, read_key

KeyType = Literal["ecdsa", "rsa", "ed25519"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate as it will be served."""

    leaf: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]
    """In the order in which they are sent; no duplicates, no root, nothing foreign."""
    found: tuple[x509.Certificate, ...]
    """What the chain file held, in its order."""
    key_type: KeyType
    """Of the leaf."""
    key_matches: bool
    """Whether the private key is the leaf's; if not, nothing can be served."""
    dns_names: tuple[str, ...]
    """Lower case, no trailing dot; a wildcard begins with `*.`."""
    addresses: tuple[str, ...]
    """IP addresses, in the spelling of `ipaddress`."""
    not_before: datetime
    not_after: datetime
    serial: int
    issuer: str
    """RFC 4514 text, printable characters only."""
    fingerprint: str
    """SHA-256 of the leaf, hexadecimal."""
    spki: str
    """SHA-256 of the leaf's public key, hexadecimal."""
    is_self_signed: bool
    key: bytes = field(repr=False)
    """The private key, PEM, in clear."""

    @property
    def names(self) -> tuple[str, ...]:
        """DNS names, then addresses."""
        return self.dns_names + self.addresses

    def covers(self, name: str) -> bool:
        """Whether a client that asked for `name` accepts this certificate (RFC 9525 6); never raises.

        An IP address may stand in brackets; a wildcard stands for exactly one label.
        """
        name = name.lower().removesuffix(".")
        if (address := _address(name)) is not None:
            return address in self.addresses
        label, _, parent = name.partition(".")
        return name in self.dns_names or (bool(label) and f"*.{parent}" in self.dns_names)

    def is_same(self, other: Certificate) -> bool:
        """Whether clients get the same, however the files were written."""
        return (self.leaf, self.intermediates, self.key) == (other.leaf, other.intermediates, other.key)

    def pem(self) -> bytes:
        """Leaf, intermediates and key in clear, as OpenSSL loads them from one file."""
        chain = b"".join(c.public_bytes(Encoding.PEM) for c in (self.leaf, *self.intermediates))
        return chain + self.key


def parse(chain: bytes, key: bytes, password: bytes | None = None) -> Certificate:
    """The certificate in the bytes of a chain file and a key file. Raises CertificateError."""
    return assemble(read_chain(chain), read_key(key, password))


def assemble(found: Sequence[x509.Certificate], key: Key) -> Certificate:
    """The certificate made of what `read_chain` and `read_key` found. Raises CertificateError."""
    key_spki = _spki(key.public_key())
    spkis = [_spki(certificate.public_key()) for certificate in found]
    # The key says which certificate is the leaf, wherever it stands in the file.
    position = spkis.index(key_spki) if key_spki in spkis else 0
    leaf = found[position]
    others = [c for c in dict.fromkeys(found) if c != leaf and not is_self_signed(c)]
    dns_names, addresses = _names(leaf)
    return Certificate(
        leaf=leaf,
        intermediates=tuple(_issuers(leaf, others)),
        found=tuple(found),
        key_type=_key_type(leaf),
        key_matches=key_spki in spkis,
        dns_names=dns_names,
        addresses=addresses,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        serial=leaf.serial_number,
        issuer=_printable(leaf.issuer.rfc4514_string()),
        fingerprint=hashlib.sha256(leaf.public_bytes(Encoding.DER)).hexdigest(),
        spki=hashlib.sha256(spkis[position]).hexdigest(),
        is_self_signed=is_self_signed(leaf),
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether `issuer` bears the name that `certificate` gives and its key made the signature."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def is_self_signed(certificate: x509.Certificate) -> bool:
    return certificate.subject == certificate.issuer and is_issued_by(certificate, certificate)


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether it says that it may sign certificates (RFC 5280 4.2.1.9)."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def common_name(name: x509.Name) -> str:
    """What people call the bearer of `name`: its CN, else the whole name."""
    found = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return _printable(str(found[0].value) if found else name.rfc4514_string())


# Private


_NAME = re.compile(r"[!-~]+")


def _issuers(certificate: x509.Certificate, rest: list[x509.Certificate]) -> list[x509.Certificate]:
    """Those of `rest` that lead up from `certificate`, each after the one it signed.

    Cross-signed CAs give several ways up: the first in the file comes first, whole, then the others.
    """
    chain: list[x509.Certificate] = []
    for candidate in list(rest):
        if candidate in rest and is_issued_by(certificate, candidate):
            rest.remove(candidate)
            chain += [candidate, *_issuers(candidate, rest)]
    return chain


def _spki(key: object) -> bytes:
    try:
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]
    except (ValueError, UnsupportedAlgorithm):
        return b""


def _key_type(leaf: x509.Certificate) -> KeyType:
    key = leaf.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "ecdsa"
    if isinstance(key, rsa.RSAPublicKey):
        return "rsa"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "ed25519"
    raise CertificateError(
        "chain",
        "key_type",
        "the certificate has a key of a type that TLS servers do not use",
        "get a certificate with an ECDSA P-256 or RSA 2048 key (certbot: --key-type ecdsa)",
    )


def _names(leaf: x509.Certificate) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (), ()
    dns_names = names.get_values_for_type(x509.DNSName)
    for name in dns_names:
        if not _NAME.fullmatch(name):
            raise CertificateError(
                "chain",
                "bad_name",
                f"the certificate holds the name {_printable(name)!a}, which no host can have",
                "get a certificate whose names are plain ASCII host names (xn-- for others)",
            )
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    lowered = (name.lower().removesuffix(".") for name in dns_names)
    return tuple(dict.fromkeys(lowered)), tuple(dict.fromkeys(addresses))


def _address(name: str) -> str | None:
    try:
        return str(ipaddress.ip_address(name.removeprefix("[").removesuffix("]")))
    except ValueError:
        return None


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
