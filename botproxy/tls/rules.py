"""What is wrong with a certificate, what that means for a bot, and what to do about it.

The same rules speak at the start, in `botproxy check` and, through `tls.guard`, before
a renewed certificate replaces the one in use. `severity` is how bad it is for the people the
bot serves; `stops` is whether the certificate can be served at all. An expired one is
served, loudly: some clients may not look, and a refused start helps none.

Pure: values and `now` in, findings out. Before: `tls.certificates`. After: `keeper.load`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID

from botproxy.tls.certificates import Certificate, common_name, is_ca, is_issued_by, is_self_signed
from botproxy.tls.lifetime import renewal_due, span

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say about a certificate."""

    rule: str
    severity: Severity
    sentence: str
    fix: str

    @property
    def stops(self) -> bool:
        """Whether no client could be served with it: OpenSSL refuses it, or the key is missing."""
        return self.rule in {"key_mismatch", "no_leaf", "weak_key", "weak_signature"}


def examine(
    certificate: Certificate,
    now: datetime,
    route_hosts: Sequence[str],
    trusted_roots: Sequence[x509.Certificate] | None,
) -> list[Finding]:
    """Everything to say about `certificate`, worst rules first.

    `route_hosts` are the hosts whose clients get this certificate, `trusted_roots` what the system
    trusts (None: unknown). `now` is aware.
    """
    rules = (
        _key_fits(certificate),
        _strength(certificate),
        _validity(certificate, now),
        _chain_complete(certificate, trusted_roots),
        _chain_tidy(certificate),
        _leaf(certificate),
        _hosts_covered(certificate, route_hosts),
    )
    return [finding for rule in rules for finding in rule]


def overshadowed(certificates: Sequence[Certificate]) -> list[int]:
    """Positions of certificates never served: earlier ones of the same key type have all their names."""
    served: dict[str, set[str]] = {}
    lost = []
    for position, certificate in enumerate(certificates):
        before = served.setdefault(certificate.key_type, set())
        if position and before.issuperset(certificate.names):
            lost.append(position)
        before.update(certificate.names)
    return lost


def unused(certificates: Sequence[Certificate], route_hosts: Sequence[str]) -> list[int]:
    """Positions of certificates none of whose names is, or fits into, a host of a route."""
    return [
        position
        for position, certificate in enumerate(certificates)
        if certificate.names
        and not any(certificate.covers(host) for host in route_hosts)
        and not any(
            host.startswith("*.") and name.partition(".")[2] == host[2:]
            for name in certificate.dns_names
            for host in route_hosts
        )
    ]


def is_trusted(certificate: Certificate, roots: Sequence[x509.Certificate]) -> bool:
    """Whether its chain leads to one of `roots`."""
    return any(_issuer_among(c, roots) for c in (certificate.leaf, *certificate.intermediates))


def is_staging(certificate: Certificate) -> bool:
    """Whether it comes from the test CA of Let's Encrypt."""
    issuers = [c.issuer.rfc4514_string() for c in (certificate.leaf, *certificate.intermediates)]
    return any(mark in issuer for issuer in issuers for mark in _STAGING)


def hsts_allowed(certificate: Certificate) -> bool:
    """Whether browsers may be promised TLS for a year: not with a certificate that they do not accept."""
    return not (certificate.is_self_signed or is_staging(certificate))


# Private


_FULLCHAIN = "name the file with the intermediates as well (certbot: fullchain.pem, not cert.pem)"
_RENEW = "renew it (certbot renew) and see that the configured files are the renewed ones"
_STAGING = ("(STAGING)", "Fake LE")
_CURVES = (ec.SECP256R1, ec.SECP384R1)


def _key_fits(certificate: Certificate) -> Iterator[Finding]:
    if certificate.key_matches:
        return
    if not certificate.is_self_signed and all(is_ca(found) for found in certificate.found):
        yield Finding(
            "no_leaf",
            "error",
            "the chain file holds only certificates of CAs, none for the key: nothing can be served",
            "name the file that begins with your own certificate (certbot: fullchain.pem, not chain.pem)",
        )
        return
    yield Finding(
        "key_mismatch",
        "error",
        "the private key belongs to another certificate: no handshake can succeed",
        "name chain and key of the same pair; compare openssl x509 -noout -pubkey -in CHAIN "
        "with openssl pkey -pubout -in KEY",
    )


def _strength(certificate: Certificate) -> Iterator[Finding]:
    for sent in (certificate.leaf, *certificate.intermediates):
        key = sent.public_key()
        of = f'of "{common_name(sent.subject)}"'
        if isinstance(key, rsa.RSAPublicKey) and key.key_size < 2048:
            yield Finding(
                "weak_key",
                "error",
                f"the RSA key {of} has {key.key_size} bits: platforms, curl and browsers demand 2048",
                "get a certificate with a new key (certbot: --key-type ecdsa, or --rsa-key-size 2048)",
            )
        if not is_self_signed(sent) and _digest(sent) in ("md5", "sha1"):
            yield Finding(
                "weak_signature",
                "error",
                f"the signature {of} is made with {_digest(sent)}: platforms, curl and browsers refuse it",
                "get a certificate signed with SHA-256 or better",
            )
    key = certificate.leaf.public_key()
    if isinstance(key, ed25519.Ed25519PublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and not isinstance(key.curve, _CURVES)
    ):
        kind = "Ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else key.curve.name
        yield Finding(
            "unusual_key",
            "warning",
            f"the key is {kind}: curl accepts it, browsers and several platforms do not",
            "get a certificate with an ECDSA P-256 or RSA 2048 key",
        )


def _validity(certificate: Certificate, now: datetime) -> Iterator[Finding]:
    end = f"{certificate.not_after:%Y-%m-%d %H:%M} UTC"
    if now >= certificate.not_after:
        yield Finding(
            "expired",
            "error",
            f"it expired on {end}: platforms, curl and browsers refuse it, the bot receives nothing",
            _RENEW,
        )
    elif now < certificate.not_before:
        yield Finding(
            "not_yet_valid",
            "error",
            f"it is valid only from {certificate.not_before:%Y-%m-%d %H:%M} UTC: clients refuse it before",
            "check the clock of this machine (timedatectl); if it is right, use the former certificate",
        )
    elif now >= renewal_due(certificate):
        yield Finding(
            "expires_soon",
            "warning",
            f"it expires on {end}, in {span(certificate.not_after - now)}, and its renewal is due: "
            "platforms, curl and browsers will refuse it then",
            _RENEW,
        )
    for sent in certificate.intermediates:
        if not sent.not_valid_before_utc <= now < sent.not_valid_after_utc:
            yield Finding(
                "chain_expired",
                "error",
                f'the intermediate "{common_name(sent.subject)}" is valid only from '
                f"{sent.not_valid_before_utc:%Y-%m-%d} to {sent.not_valid_after_utc:%Y-%m-%d}: "
                "platforms and curl refuse the chain",
                "fetch the current intermediate from the CA, or renew the certificate",
            )


def _chain_complete(
    certificate: Certificate, trusted_roots: Sequence[x509.Certificate] | None
) -> Iterator[Finding]:
    if certificate.is_self_signed or not certificate.key_matches:
        return
    sent = (certificate.leaf, *certificate.intermediates)
    ends = [c for c in sent if not _issuer_among(c, certificate.found)]
    if not ends:
        # Every way up ends in a root of the file; it is dropped, the chain is whole.
        if trusted_roots is not None and not is_trusted(certificate, trusted_roots):
            yield _private_ca(certificate)
        return
    if trusted_roots is not None and is_trusted(certificate, trusted_roots):
        return
    end = ends[-1]
    issuer = common_name(end.issuer)
    if any(found.subject == end.issuer for found in certificate.found):
        yield Finding(
            "chain_signature",
            "error",
            f'the file holds a "{issuer}", but its key did not sign "{common_name(end.subject)}": '
            "platforms and curl refuse the chain",
            "fetch the intermediate that goes with this certificate, or " + _FULLCHAIN,
        )
    elif not certificate.intermediates:
        url = _issuer_url(end)
        yield Finding(
            "missing_intermediate",
            "error",
            f'the certificate of its issuer "{issuer}" is not in the file: Telegram and curl will refuse it, '
            "although browsers may not",
            _FULLCHAIN + (f"; the CA offers it at {url}" if url else ""),
        )
    elif trusted_roots is not None:
        yield Finding(
            "missing_intermediate",
            "warning",
            f'the chain ends with "{common_name(end.subject)}", and the issuer "{issuer}" is neither in the '
            "file nor trusted by this system: clients that do not know that CA refuse it",
            "append the missing intermediate; if the CA is your own, have its clients trust it",
        )


def _chain_tidy(certificate: Certificate) -> Iterator[Finding]:
    found = list(dict.fromkeys(certificate.found))
    sent = [certificate.leaf, *certificate.intermediates]
    if len(found) < len(certificate.found):
        yield Finding(
            "duplicate",
            "info",
            "the chain file holds a certificate twice; it is sent once",
            "remove the second copy from the file",
        )
    for extra in found:
        if extra in sent:
            continue
        name = common_name(extra.subject)
        if is_self_signed(extra) and any(is_issued_by(c, extra) for c in sent):
            yield Finding(
                "root_in_chain",
                "info",
                f'the root "{name}" is in the chain file; it is not sent, clients believe only their copy',
                "remove the last certificate from the file",
            )
        else:
            yield Finding(
                "unrelated",
                "warning",
                f'"{name}" in the chain file signed nothing in the chain; it is not sent',
                "remove it from the file",
            )
    if [c for c in found if c in sent] != sent:
        yield Finding(
            "order",
            "warning",
            "the certificates of the chain file are in the wrong order; they are sent in the right one, "
            "other servers would send what Telegram and curl refuse",
            "write your own certificate first, then each one that signed the one before",
        )


def _leaf(certificate: Certificate) -> Iterator[Finding]:
    if _must_staple(certificate.leaf):
        yield Finding(
            "must_staple",
            "error",
            "it demands a stapled OCSP response (must-staple), which botproxy does not send: Firefox refuses",
            "get a certificate without it (certbot: without --must-staple)",
        )
    if certificate.is_self_signed:
        yield Finding(
            "self_signed",
            "warning",
            "it is self-signed: platforms and browsers refuse it, curl does unless told with --cacert; "
            "Telegram accepts it only when it is uploaded with setWebhook",
            "get one from a public CA, e.g. certbot certonly; for tests upload this one",
        )
    elif certificate.key_matches and is_ca(certificate.leaf):
        yield Finding(
            "leaf_is_ca",
            "error",
            "it is the certificate of a CA, not of a server: many clients refuse it",
            "make a server certificate with this CA and serve that",
        )
    if is_staging(certificate):
        yield Finding(
            "staging",
            "warning",
            "it comes from a CA for tests (staging): platforms, curl and browsers refuse it",
            "get it from the production CA (certbot: without --staging or --test-cert)",
        )


def _hosts_covered(certificate: Certificate, route_hosts: Sequence[str]) -> Iterator[Finding]:
    if not certificate.names:
        yield Finding(
            "no_names",
            "error",
            "it names no host (no subjectAltName; the CN is not looked at any more): every client refuses it",
            "get a certificate with the bot's host name as subjectAltName",
        )
        return
    known = ", ".join(certificate.names[:5]) + (", ..." if len(certificate.names) > 5 else "")
    for host in route_hosts:
        if not certificate.covers(host):
            yield Finding(
                "name_not_covered",
                "error",
                f'no certificate covers the host "{host}" of a route (this one: {known}): '
                "platforms, curl and browsers refuse to talk to it",
                f"get a certificate that includes it, e.g. certbot certonly -d {host}",
            )


def _private_ca(certificate: Certificate) -> Finding:
    return Finding(
        "private_ca",
        "warning",
        f'its issuer "{common_name(certificate.leaf.issuer)}" does not lead to a root that this system '
        "trusts: platforms refuse it, curl and browsers unless they were told of that CA",
        "for a public bot get one from a public CA, e.g. certbot certonly",
    )


def _issuer_among(certificate: x509.Certificate, candidates: Sequence[x509.Certificate]) -> bool:
    return any(
        candidate.subject == certificate.issuer and is_issued_by(certificate, candidate)
        for candidate in candidates
    )


def _must_staple(leaf: x509.Certificate) -> bool:
    try:
        features = leaf.extensions.get_extension_for_class(x509.TLSFeature).value
    except x509.ExtensionNotFound:
        return False
    return x509.TLSFeatureType.status_request in features


def _issuer_url(certificate: x509.Certificate) -> str | None:
    try:
        access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    except x509.ExtensionNotFound:
        return None
    for description in access:
        location = description.access_location
        if description.access_method == AuthorityInformationAccessOID.CA_ISSUERS and isinstance(
            location, x509.UniformResourceIdentifier
        ):
            return ascii(location.value)[1:-1]
    return None


def _digest(certificate: x509.Certificate) -> str | None:
    """Name of the signature's hash; None for signatures without one (Ed25519) and for new ones."""
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return None
    return algorithm.name if algorithm else None
