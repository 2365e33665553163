"""Certificates for the containers, issued by the image itself: nothing but Python and its cryptography.

`python3 issue.py DIRECTORY NAME` makes root.pem there (once, with its key), and beside it
fullchain.pem and privkey.pem for NAME, readable by their owner.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def main(directory: Path, name: str) -> None:
    root_file, root_key_file = directory / "root.pem", directory / "root-key.pem"
    if root_file.exists():
        root = x509.load_pem_x509_certificate(root_file.read_bytes())
        root_key = serialization.load_pem_private_key(root_key_file.read_bytes(), None)
        assert isinstance(root_key, ec.EllipticCurvePrivateKey)
    else:
        root_key = ec.generate_private_key(ec.SECP256R1())
        root = _signed(_named("Container root"), root_key, None, root_key, ca=True)
        root_file.write_bytes(root.public_bytes(serialization.Encoding.PEM))
        root_key_file.write_bytes(_pem(root_key))
    middle_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    middle = _signed(_named("Container intermediate"), middle_key, root, root_key, ca=True)
    leaf = _signed(_named(name), key, middle, middle_key, ca=False)
    chain = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (leaf, middle))
    for file, content in (("fullchain.pem", chain), ("privkey.pem", _pem(key))):
        new = directory / f"{file}.new"
        new.write_bytes(content)
        new.chmod(0o600)
        os.replace(new, directory / file)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _signed(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    ca: bool,
) -> x509.Certificate:
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=89))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    if not ca:
        (name,) = (str(each.value) for each in subject)
        built = built.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    built = built.add_extension(
        x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=ca,
            crl_sign=ca,
            encipher_only=False,
            decipher_only=False,
            **usage,
        ),
        critical=True,
    )
    return built.sign(issuer_key, hashes.SHA256())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
