"""How near the end of a certificate is, measured by its own lifetime.

Fixed numbers of days are wrong for certificates of 45 or of 6 days. Renewal is due a
month or a third of the lifetime before the end, whichever is less; half of a lifetime
under ten days (Let's Encrypt's integration guide). Who has not renewed at a sixth is
late, and at a twentieth in trouble.

Pure. Before: `tls.certificates`. After: `tls.rules`, `keeper.expiry`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import Enum

from botproxy.tls.certificates import Certificate

SHORT = timedelta(days=10)
MONTH = timedelta(days=30)


class Stage(Enum):
    """What part of its life a certificate is in."""

    NOT_YET = "not_yet_valid"
    FINE = "fine"
    DUE = "renewal_due"
    LATE = "renewal_late"
    """Less than a sixth of the lifetime is left."""
    LAST = "renewal_last_moment"
    """Less than a twentieth is left."""
    EXPIRED = "expired"


def renewal_due(certificate: Certificate) -> datetime:
    """When it should be renewed."""
    lifetime = certificate.not_after - certificate.not_before
    if lifetime < SHORT:
        return certificate.not_after - lifetime / 2
    return certificate.not_after - min(MONTH, lifetime / 3)


def stage(certificate: Certificate, now: datetime) -> Stage:
    """The stage at `now`, which is aware."""
    # Of a long one no more counts than that of which a month is a third.
    lifetime = min(certificate.not_after - certificate.not_before, 3 * MONTH)
    left = certificate.not_after - now
    if now < certificate.not_before:
        return Stage.NOT_YET
    if left <= timedelta():
        return Stage.EXPIRED
    if left < lifetime / 20:
        return Stage.LAST
    if left < lifetime / 6:
        return Stage.LATE
    return Stage.DUE if now >= renewal_due(certificate) else Stage.FINE


def span(left: timedelta) -> str:
    """`left` as people say it."""
    hours = int(left.total_seconds() // 3600)
    return f"{hours // 24} days" if hours >= 48 else f"{hours} hours"
