"""The proof that certificates work: handshakes in memory, before a client meets them.

What OpenSSL thinks of a pair shows only when it is used. Every certificate is tried in
TLS 1.3, in TLS 1.2 where the policy allows it, and for each key type; on request under
every name it bears; and a chain that our own rules found complete is verified once more
as a strict client does it, without PARTIAL_CHAIN, so that a lone intermediate is no root.
No socket, no file; a listener context is only read.

Before: `tls.context`. After: `keeper.load`, `server.handover`.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401 by every handshake, and its process may no longer be allowed to read it
import hashlib
import ssl
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from botproxy.tls.context import CertificateSet, Served

WILDCARD_LABEL = "botproxy-probe"
"""What is asked for where a certificate has a wildcard."""


class ProofFailed(Exception):
    """A context that does not complete a handshake, or serves another certificate than it should."""


def prove(
    certificates: CertificateSet,
    listener: ssl.SSLContext,
    *,
    every_name: bool = False,
    proven: Sequence[Served] = (),
) -> None:
    """Shake hands with everything in `certificates`; raises ProofFailed unless each works as it says.

    What is in `proven` is not asked again.
    """
    for served in certificates.each():
        if served in proven:
            continue
        name = next((n for n in served.names if is_askable(n)), None)
        fingerprints = probe(listener, served.context, name)
        if fingerprints != served.fingerprints:
            raise ProofFailed(f"the certificate of {name} is served as {sorted(fingerprints)}")
    if not every_name:
        return
    prove_selection(certificates)
    for host in certificates.hosts():
        name, chosen = askable(host), _chosen(certificates, host)
        for version in _versions(listener):
            try:
                found = shake(
                    policy_of(listener, chosen.context), client(version), name if is_askable(name) else None
                )
            except ssl.SSLError as error:
                raise ProofFailed(f"a TLS handshake for {host} fails ({error.reason})") from None
            if found not in chosen.fingerprints:
                raise ProofFailed(f"the name {host} is served as {found}")


def prove_selection(certificates: CertificateSet) -> None:
    """Ask for every name, without a handshake; raises ProofFailed unless each leads to its certificate."""
    for host in certificates.hosts():
        if certificates.select(askable(host)) is not _chosen(certificates, host):
            raise ProofFailed(f"the name {host} is served another certificate")


def probe(listener: ssl.SSLContext, context: ssl.SSLContext, server_name: str | None) -> frozenset[str]:
    """The SHA-256 of the leaves that `context` serves under the policy of `listener`.

    TLS 1.3, TLS 1.2 where the policy allows it, then one for each key type (in TLS 1.2, where a client
    can choose it). Raises ProofFailed when a handshake fails or no key type is served.
    """
    try:
        seen = {
            shake(policy_of(listener, context), client(version), server_name)
            for version in _versions(listener)
        }
    except ssl.SSLError as error:
        raise ProofFailed(f"a TLS handshake with the certificate fails ({error.reason})") from None
    for authentication in ("aECDSA", "aRSA"):
        server = policy_of(listener, context)
        server.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            seen.add(shake(server, client_of_type(authentication), server_name))
        except ssl.SSLError as error:
            if error.reason != "NO_SHARED_CIPHER":  # it has no certificate of this type
                raise ProofFailed(f"a TLS handshake with the certificate fails ({error.reason})") from None
    return frozenset(seen)


def distrust(context: ssl.SSLContext, server_name: str, anchors: Sequence[x509.Certificate]) -> str | None:
    """Why a client that knows the system's roots and `anchors` refuses what `context` serves.

    None when it accepts it.
    """
    verifier = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    verifier.check_hostname = False  # names are `tls.rules`' affair
    verifier.load_default_certs()
    # Python 3.13 would take any certificate of the store for a root, also an intermediate.
    verifier.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    # Strict RFC 5280 form is not what platforms ask for.
    verifier.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
    if anchors:
        verifier.load_verify_locations(cadata=b"".join(a.public_bytes(Encoding.DER) for a in anchors))
    try:
        shake(context, verifier, server_name)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    return None


def is_askable(name: str) -> bool:
    """Whether a client can put `name` into its hello: no wildcard, no address (RFC 6066 3)."""
    labels = name.removesuffix(".").split(".")
    return (
        not name.startswith("*.")
        and ":" not in name
        and not name.replace(".", "").isdigit()
        and len(name) <= 255
        and all(0 < len(label) < 64 for label in labels)
    )


def askable(host: str) -> str:
    """A name that `host` covers."""
    return WILDCARD_LABEL + host[1:] if host.startswith("*.") else host


def client(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A client of one version, or of every one, that takes any certificate."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # set by some builds of Python
    made.check_hostname = False
    # What clients think of the chain is said by `tls.rules`, and by `distrust`.
    made.verify_mode = ssl.CERT_NONE
    if version is not None:
        made.minimum_version = made.maximum_version = version
    return made


def client_of_type(authentication: str) -> ssl.SSLContext:
    """A client that accepts one type of key only, `aECDSA` or `aRSA`; TLS 1.2, where that can be said."""
    made = client(ssl.TLSVersion.TLSv1_2)
    made.set_ciphers(f"ECDHE+{authentication}")
    return made


def policy_of(listener: ssl.SSLContext, context: ssl.SSLContext) -> ssl.SSLContext:
    """A context with the policy of `listener` that swaps to `context` in the handshake."""
    copy = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    copy.options = listener.options
    copy.minimum_version = listener.minimum_version
    copy.num_tickets = listener.num_tickets
    # The names of TLS 1.3 suites are no part of a cipher list.
    copy.set_ciphers(":".join(c["name"] for c in listener.get_ciphers() if c["protocol"] != "TLSv1.3"))

    def swap(connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _: ssl.SSLContext) -> None:
        connection.context = context

    copy.sni_callback = swap
    return copy


def shake(server: ssl.SSLContext, asking: ssl.SSLContext, server_name: str | None) -> str:
    """The fingerprint that the client context `asking` got. Raises ssl.SSLError, ProofFailed."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        asking.wrap_bio(down, up, server_hostname=server_name),
        server.wrap_bio(up, down, server_side=True),
    ]
    waiting = list(ends)
    for _ in range(8):  # a handshake takes at most three turns
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
        if not waiting:
            return fingerprint(ends[0])
    raise ProofFailed("a TLS handshake with the certificate does not come to an end")


def fingerprint(connection: ssl.SSLObject | ssl.SSLSocket) -> str:
    """SHA-256 of the leaf that the server at the other end of `connection` showed."""
    leaf = connection.getpeercert(binary_form=True)
    assert leaf is not None
    return hashlib.sha256(leaf).hexdigest()


# Private


def _chosen(certificates: CertificateSet, host: str) -> Served:
    return certificates.wildcards[host[2:]] if host.startswith("*.") else certificates.exact[host]


def _versions(listener: ssl.SSLContext) -> list[ssl.TLSVersion]:
    if listener.minimum_version == ssl.TLSVersion.TLSv1_3:
        return [ssl.TLSVersion.TLSv1_3]
    return [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2]
