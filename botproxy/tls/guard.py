"""Whether a new certificate may take the place of the one that is served.

A renewal must not make things worse. While the current certificate is fine, a new one
is refused that has an error the current one has not (`tls.rules`: expired, chain broken,
must-staple and the like), that lost a name or the upper part of its chain, that public
clients trust less, or that looks like an old copy of the same key. Whoever knows better
overrides all of it, except what no client could be served with.

Pure: values and `now` in, findings out. Before: `tls.rules`. After: `keeper.renewal`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from cryptography import x509

from botproxy.tls.certificates import Certificate, common_name
from botproxy.tls.rules import Finding, examine, is_staging, is_trusted

EARLIER = timedelta(days=1)
"""How much earlier a certificate for the same key may end; renewals of short ones are not that exact."""


def objections(
    new: Certificate,
    current: Certificate | None,
    now: datetime,
    trusted_roots: Sequence[x509.Certificate] | None,
    *,
    forced: bool = False,
) -> list[Finding]:
    """Why `new` may not take the place of `current`; empty when it may.

    `current` is None when nothing is served yet, `trusted_roots` what the system trusts (None:
    unknown). `forced`: only what cannot be served at all is an objection.
    """
    found = examine(new, now, (), trusted_roots)
    unservable = [finding for finding in found if finding.stops]
    if unservable or forced or current is None or not is_fine(current, now):
        return unservable
    known = {(f.rule, f.severity) for f in examine(current, now, (), trusted_roots)}
    worse = [f for f in found if f.severity == "error" and (f.rule, f.severity) not in known]
    return [
        *worse,
        *_chain(new, current, now, trusted_roots),
        *_names(new, current),
        *_trust(new, current, trusted_roots),
        *_end(new, current),
    ]


def is_fine(certificate: Certificate, now: datetime) -> bool:
    """Whether it can be served and is valid at `now`, so that there is something to lose."""
    return certificate.key_matches and certificate.not_before <= now < certificate.not_after


# Private


_FORCE = "if it is meant so: botproxy cert reload --force"


def _chain(
    new: Certificate,
    current: Certificate,
    now: datetime,
    trusted_roots: Sequence[x509.Certificate] | None,
) -> Iterator[Finding]:
    """The way up that the current chain shows and the new one breaks off.

    Of a CA that this system does not know nobody can say where its clients' trust begins; but what
    they got until now was enough. Without any intermediate it is an error by itself (`tls.rules`).
    """
    if not new.intermediates or (trusted_roots is not None and is_trusted(new, trusted_roots)):
        return
    has = {certificate.subject for certificate in new.found}
    provided = {
        c.subject for c in current.intermediates if c.not_valid_before_utc <= now < c.not_valid_after_utc
    }
    for end in new.intermediates:
        if end.issuer in provided - has:
            yield Finding(
                "missing_intermediate",
                "error",
                f'its chain ends with "{common_name(end.subject)}"; the issuer "{common_name(end.issuer)}", '
                "which the current chain has, is not in the file: clients that know only the root refuse it",
                f"name the file with all intermediates; {_FORCE}",
            )
            return


def _names(new: Certificate, current: Certificate) -> Iterator[Finding]:
    lost = [name for name in current.names if not _still_covers(new, name)]
    if lost:
        shown = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
        has = ", ".join(new.names[:5]) + (", ..." if len(new.names) > 5 else "") or "none"
        yield Finding(
            "loses_names",
            "error",
            f"it no longer has the names {shown}, which the current one has (new: {has}): "
            "clients that ask for them would refuse it",
            f"get a certificate with all names (certbot certonly --expand -d ...); {_FORCE}",
        )


def _still_covers(new: Certificate, name: str) -> bool:
    # A wildcard is kept by itself alone: names below it are without number.
    return name in new.dns_names if name.startswith("*.") else new.covers(name)


def _trust(
    new: Certificate, current: Certificate, trusted_roots: Sequence[x509.Certificate] | None
) -> Iterator[Finding]:
    if new.is_self_signed and not current.is_self_signed:
        rule, what = "turns_self_signed", "it is self-signed"
    elif is_staging(new) and not is_staging(current):
        rule, what = "turns_staging", "it comes from a CA for tests (staging)"
    elif trusted_roots is not None and is_trusted(current, trusted_roots) > is_trusted(new, trusted_roots):
        rule, what = "turns_private", "it does not lead to a root that this system trusts"
    else:
        return
    yield Finding(
        rule,
        "error",
        f"{what}, and the current one was issued by a CA that its clients accept: they would refuse it",
        f"get it from the CA that issued the current one (certbot: without --staging); {_FORCE}",
    )


def _end(new: Certificate, current: Certificate) -> Iterator[Finding]:
    if new.spki == current.spki and new.not_after < current.not_after - EARLIER:
        yield Finding(
            "ends_earlier",
            "error",
            f"it ends on {new.not_after:%Y-%m-%d}, before the current one ({current.not_after:%Y-%m-%d}), "
            "and has the same key: it looks like an old copy",
            f"see which file is the newest (botproxy check shows dates); {_FORCE}",
        )
