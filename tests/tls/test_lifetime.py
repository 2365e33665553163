"""Nearness of the end, by the lifetime of each certificate and not by fixed days."""

from __future__ import annotations

from datetime import timedelta

import pytest

from botproxy.tls.certificates import Certificate
from botproxy.tls.lifetime import Stage, renewal_due, span, stage
from tests import certs
from tests.certs import DAY, NOW

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)


def lasting(lifetime: timedelta) -> Certificate:
    """A certificate that is valid from `NOW` on."""
    key = certs.ecdsa_key()
    built = certs.build("a.test", key, names=("a.test",), not_before=NOW, not_after=NOW + lifetime)
    return certs.Issued((built,), key).certificate


@pytest.mark.parametrize(
    ("lifetime", "due", "late", "last"),
    [
        (90 * DAY, 30 * DAY, 15 * DAY, 108 * HOUR),
        (60 * DAY, 20 * DAY, 10 * DAY, 72 * HOUR),
        (45 * DAY, 15 * DAY, 180 * HOUR, 54 * HOUR),
        (10 * DAY, 80 * HOUR, 40 * HOUR, 12 * HOUR),
        (10 * DAY - HOUR, 239 * HOUR / 2, 239 * HOUR / 6, 239 * HOUR / 20),
        (160 * HOUR, 80 * HOUR, 160 * HOUR / 6, 8 * HOUR),
        (DAY, 12 * HOUR, 4 * HOUR, DAY / 20),
    ],
    ids=str,
)
def test_each_stage_begins_that_long_before_the_end(
    lifetime: timedelta, due: timedelta, late: timedelta, last: timedelta
):
    certificate = lasting(lifetime)
    end = NOW + lifetime
    assert renewal_due(certificate) == end - due
    assert stage(certificate, NOW - SECOND) is Stage.NOT_YET
    assert stage(certificate, NOW) is Stage.FINE
    assert stage(certificate, end - due - SECOND) is Stage.FINE
    assert stage(certificate, end - due) is Stage.DUE
    assert stage(certificate, end - late) is Stage.DUE
    assert stage(certificate, end - late + SECOND) is Stage.LATE
    assert stage(certificate, end - last) is Stage.LATE
    assert stage(certificate, end - last + SECOND) is Stage.LAST
    assert stage(certificate, end - SECOND) is Stage.LAST
    assert stage(certificate, end) is Stage.EXPIRED


@pytest.mark.parametrize("days", [91, 200, 365, 398, 3650])
def test_the_renewal_of_a_long_one_is_due_a_month_before_the_end_and_not_late_before(days: int):
    certificate = lasting(days * DAY)
    due = NOW + (days - 30) * DAY
    assert renewal_due(certificate) == due
    assert stage(certificate, due - SECOND) is Stage.FINE
    assert stage(certificate, due) is Stage.DUE


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (30 * DAY, "30 days"),
        (48 * HOUR, "2 days"),
        (48 * HOUR - SECOND, "47 hours"),
        (3 * HOUR, "3 hours"),
        (3 * HOUR - SECOND, "2 hours"),
    ],
    ids=str,
)
def test_what_is_left_is_said_in_days_or_hours(left: timedelta, said: str):
    assert span(left) == said
