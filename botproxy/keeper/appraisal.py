"""May this certificate be served in the place of that one: the rules, the guard and the proof, in order.

The same at the start and for every renewal. Answers with the one finding that speaks
against it, or with nothing. It reads the system's CAs and shakes hands in memory; it
writes nothing and tells no worker.

Before: `keeper.boot`, `keeper.renewal`. Uses `tls.guard`, `tls.proof`.
"""

from __future__ import annotations

import os
import ssl
import warnings
from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning

from botproxy.tls import guard
from botproxy.tls.certificates import Certificate, is_self_signed
from botproxy.tls.context import CertificateSet, certificate_context, hand
from botproxy.tls.proof import ProofFailed, askable, distrust, is_askable, prove
from botproxy.tls.rules import Finding, is_trusted


def objection(
    new: Certificate,
    current: Certificate | None,
    now: datetime,
    listener: ssl.SSLContext,
    *,
    forced: bool = False,
) -> Finding | None:
    """Why `new` may not take the place of `current` (None: nothing is served); None when it may.

    `forced` leaves only what cannot be served at all. `listener` is only read.
    """
    roots = system_roots()
    if found := guard.objections(new, current, now, roots, forced=forced):
        return found[0]
    if unproven := _unproven(new, listener):
        return unproven
    if forced or current is None or not guard.is_fine(current, now):
        return None
    distrusted = distrusted_chain(new, roots)
    return distrusted if distrusted and not distrusted_chain(current, roots) else None


def distrusted_chain(certificate: Certificate, roots: Sequence[x509.Certificate] | None) -> Finding | None:
    """What OpenSSL, as a strict client, has against a chain that our rules found complete."""
    own = [found for found in certificate.found if is_self_signed(found)]
    trusted = roots is not None and is_trusted(certificate, roots)
    name = next((askable(name) for name in certificate.dns_names if is_askable(askable(name))), None)
    if certificate.is_self_signed or not certificate.key_matches or name is None:
        return None
    if not trusted and not is_trusted(certificate, own):
        return None
    handed = hand(certificate)
    try:
        reason = distrust(certificate_context([handed.fd]), name, () if trusted else own)
    except (ssl.SSLError, ProofFailed):
        return None  # it cannot be served at all, which has its own finding
    finally:
        os.close(handed.fd)
    if reason is None:
        return None
    return Finding(
        "chain_not_verified",
        "error",
        f"OpenSSL does not verify its chain ({reason}): curl and most platforms refuse it",
        "see what is wrong: openssl verify -untrusted CHAIN CHAIN; fetch the chain from the CA again",
    )


def system_roots() -> list[x509.Certificate] | None:
    """The CAs that this system trusts; None when it has no list of them."""
    roots = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    with warnings.catch_warnings():
        # Old roots with odd serial numbers are the distribution's affair, not the operator's.
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        for der in context.get_ca_certs(binary_form=True):
            try:
                roots.append(x509.load_der_x509_certificate(der))
            except ValueError:
                continue  # OpenSSL is more lenient; no certificate of today leads to such a root
    return roots or None


# Private


def _unproven(certificate: Certificate, listener: ssl.SSLContext) -> Finding | None:
    handed = hand(certificate)
    try:
        prove(CertificateSet.load([handed], strict=False), listener, every_name=True)
    except (ssl.SSLError, ProofFailed) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else str(error)
        return Finding(
            "unservable",
            "error",
            f"OpenSSL cannot serve it: {reason}",
            "get a certificate with an ECDSA P-256 or RSA 2048 key",
        )
    finally:
        os.close(handed.fd)
    return None
