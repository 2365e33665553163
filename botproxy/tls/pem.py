"""Certificates and keys out of the bytes of PEM files, and what is wrong with bytes that are none.

Strict about what OpenSSL is lenient about: a file cut anywhere but between two
certificates is refused, whatever follows. Lenient where nothing can go wrong: line
ends, text around the blocks, a chain file that also holds the key. What is handed on
to OpenSSL is written anew from what was parsed here, so both read the same.

Pure: bytes in, values out. After: `tls.certificates`, which puts chain and key together.
"""

from __future__ import annotations

import re
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

MAX_SIZE = 1024 * 1024
"""Bytes of a chain or key file."""
MAX_CHAIN = 32
"""Certificates of a chain file; a file with more is a collection of roots."""

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
Part = Literal["chain", "key"]


class CertificateError(Exception):
    """A pair that cannot be used; `part` is the file to blame.

    `rule` is a word for logs, `sentence` says what is wrong, `fix` what to do about it.
    """

    def __init__(self, part: Part, rule: str, sentence: str, fix: str) -> None:
        super().__init__(sentence)
        self.part = part
        self.rule = rule
        self.sentence = sentence
        self.fix = fix


def read_chain(data: bytes) -> tuple[x509.Certificate, ...]:
    """Every certificate of a chain file, in the file's order. Raises CertificateError."""
    blocks = _blocks(data, "chain")
    found = [block for label, block in blocks if label in _CERTIFICATE_LABELS]
    if not found:
        raise _no_certificate({label for label, _ in blocks})
    if len(found) > MAX_CHAIN:
        raise CertificateError(
            "chain",
            "too_many",
            f"the file holds {len(found)} certificates: a collection of roots, not one chain",
            "name the file with the certificate and its intermediates (certbot: fullchain.pem)",
        )
    return tuple(_certificate(block, number) for number, block in enumerate(found, 1))


def read_key(data: bytes, password: bytes | None) -> Key:
    """The private key of a key file; `password` opens an encrypted one. Raises CertificateError."""
    blocks = _blocks(data, "key")
    keys = [(label, block) for label, block in blocks if label.endswith("PRIVATE KEY")]
    if not keys:
        raise _no_key({label for label, _ in blocks})
    if len(keys) > 1:
        raise CertificateError(
            "key",
            "several_keys",
            f"the file holds {len(keys)} private keys, and which one belongs to the certificate is not said",
            "keep the one key of this certificate in the file",
        )
    label, block = keys[0]
    if label == "OPENSSH PRIVATE KEY":
        raise CertificateError(
            "key",
            "key_format",
            "the file holds an SSH key, not the key of a certificate",
            "name the key file that came with the certificate (certbot: privkey.pem)",
        )
    encrypted = label.startswith("ENCRYPTED") or b"Proc-Type: 4,ENCRYPTED" in block
    return _key(block, password, encrypted=encrypted)


# Private


_CERTIFICATE_LABELS = frozenset({"CERTIFICATE", "X509 CERTIFICATE"})
_MARK = re.compile(rb"-----(BEGIN|END) ([A-Z0-9 ]{1,40})-----")
_CUT_FIX = "write the whole file again; if a program was just writing it, try once more"


def _blocks(data: bytes, part: Part) -> list[tuple[str, bytes]]:
    """(label, block with its marks) of each PEM block."""
    if len(data) > MAX_SIZE:
        raise CertificateError(
            part, "too_large", "the file is larger than 1 MiB: no certificate or key is", _expected(part)
        )
    if not data.strip():
        raise CertificateError(part, "empty", "the file is empty", _CUT_FIX)
    cut = CertificateError(part, "cut", "the file ends or breaks off inside a PEM block", _CUT_FIX)
    blocks: list[tuple[str, bytes]] = []
    begin: re.Match[bytes] | None = None
    outside = 0
    for mark in _MARK.finditer(data):
        if mark[1] == b"BEGIN":
            if begin is not None or _holds_mark(data[outside : mark.start()]):
                raise cut
            begin = mark
        else:
            if begin is None or begin[2] != mark[2]:
                raise cut
            blocks.append((mark[2].decode("ascii"), data[begin.start() : mark.end()] + b"\n"))
            begin, outside = None, mark.end()
    if begin is not None or _holds_mark(data[outside:]):
        raise cut
    if not blocks:
        raise _not_pem(data, part)
    return blocks


def _holds_mark(text: bytes) -> bool:
    """Whether text between blocks holds a damaged mark or ends in the beginning of one."""
    if b"-----BEGIN" in text or b"-----END" in text:
        return True
    last = text.strip().rpartition(b"\n")[2].strip()
    return bool(last) and b"-----BEGIN ".startswith(last)


def _certificate(block: bytes, number: int) -> x509.Certificate:
    block = block.replace(b"X509 CERTIFICATE-----", b"CERTIFICATE-----")
    try:
        certificate = x509.load_pem_x509_certificate(block)
        # These are parsed when asked for: ask now, so that nobody meets their errors later.
        _ = certificate.extensions, certificate.subject, certificate.issuer, certificate.not_valid_after_utc
        _ = certificate.public_key(), certificate.signature_algorithm_oid
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ):
        raise CertificateError(
            "chain",
            "unparsable",
            f"certificate {number} in the file cannot be parsed",
            "fetch the certificate again; openssl x509 -noout -text -in FILE shows how far it is readable",
        ) from None
    return certificate


def _key(block: bytes, password: bytes | None, *, encrypted: bool) -> Key:
    if encrypted and not password:
        raise CertificateError(
            "key",
            "password_missing",
            "the private key is encrypted and no password is configured",
            "name a file with it in password_file, or decrypt: openssl pkey -in FILE -out privkey.pem",
        )
    try:
        key = load_pem_private_key(block, password if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if encrypted:
            raise CertificateError(
                "key",
                "password_wrong",
                "the configured password does not open the private key",
                "compare password_file with: openssl pkey -noout -in FILE",
            ) from None
        raise CertificateError(
            "key",
            "unparsable",
            "the private key cannot be parsed",
            "write the key file again from its source",
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        raise CertificateError(
            "key",
            "key_type",
            "the private key is of a type that TLS certificates are not made with",
            "get a certificate with an ECDSA P-256 or RSA 2048 key (certbot: --key-type ecdsa)",
        )
    return key


def _expected(part: Part) -> str:
    if part == "chain":
        return "name the PEM file with the certificate and its intermediates (certbot: fullchain.pem)"
    return "name the PEM file with the private key (certbot: privkey.pem)"


def _no_certificate(labels: set[str]) -> CertificateError:
    if any(label.endswith("PRIVATE KEY") for label in labels):
        sentence = "the file holds a private key and no certificate: chain and key may be exchanged"
        return CertificateError("chain", "key_in_chain", sentence, _expected("chain"))
    if labels & {"CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"}:
        sentence = "the file holds a request for a certificate (CSR), not the certificate the CA made of it"
        return CertificateError("chain", "request", sentence, _expected("chain"))
    if "PKCS7" in labels:
        fix = "convert it: openssl pkcs7 -print_certs -in FILE -out fullchain.pem"
        return CertificateError("chain", "pkcs7", "the file is PKCS#7, not plain PEM certificates", fix)
    return CertificateError("chain", "no_certificate", "the file holds no certificate", _expected("chain"))


def _no_key(labels: set[str]) -> CertificateError:
    if labels & _CERTIFICATE_LABELS:
        sentence = "the file holds certificates and no private key: chain and key may be exchanged"
        return CertificateError("key", "chain_in_key", sentence, _expected("key"))
    return CertificateError("key", "no_key", "the file holds no private key", _expected("key"))


def _not_pem(data: bytes, part: Part) -> CertificateError:
    # DER is one SEQUENCE; that of PKCS#12 begins with the INTEGER 3 (RFC 7292 4).
    if data[:1] == b"\x30" and b"\x02\x01\x03" in data[1:9]:
        option, name = ("-nokeys", "fullchain.pem") if part == "chain" else ("-nocerts -nodes", "privkey.pem")
        fix = f"convert it: openssl pkcs12 -in FILE {option} -out {name}"
        return CertificateError(part, "pkcs12", "the file is PKCS#12 (.p12, .pfx), not PEM", fix)
    if data[:1] == b"\x30":
        command = "x509" if part == "chain" else "pkey"
        name = "fullchain.pem" if part == "chain" else "privkey.pem"
        fix = f"convert it: openssl {command} -inform der -in FILE -out {name}"
        return CertificateError(part, "der", "the file is DER (.der, .cer, .crt), not PEM", fix)
    return CertificateError(
        part, "not_pem", "the file is not PEM: it holds no -----BEGIN line", _expected(part)
    )
