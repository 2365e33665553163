"""What time brings is said once, when it begins."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from botproxy.errors import Problem
from botproxy.keeper import vigil
from botproxy.keeper.lineage import ALARM, PATIENCE, Lineage
from botproxy.keeper.store import Refusal
from botproxy.tls.rules import Finding
from tests.certs import DAY, NOW, Authority
from tests.keeper.conftest import active, lineage

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)
PROBLEM = Problem("/etc/ssl/site.pem", "certificates[0].chain", "the file is empty", "wait")
REFUSAL = Refusal("ab", "expired", "it expired", "renew it", NOW.isoformat(), final=False)
END = NOW + 90 * DAY

DUE = ("WARNING", "the renewal of a certificate is due")
LATE = ("ERROR", "a certificate should have been renewed long ago")
LAST = ("ERROR", "a certificate is about to expire")
EXPIRED = ("ERROR", "a certificate has expired, clients refuse it")
NOT_YET = ("ERROR", "a certificate is not valid yet, clients refuse it")
AGAIN = ("INFO", "a certificate is valid again")
UNUSABLE = ("ERROR", "the certificate files cannot be used, the current one is served on")
DIFFERS = ("ERROR", "what is served is not what the certificate files hold")

Said = Callable[[], list[tuple[str, str]]]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """`said()`: levels and messages since it was last asked."""
    caplog.set_level(logging.DEBUG, "botproxy.keeper.vigil")

    def take() -> list[tuple[str, str]]:
        found = [(record.levelname, record.getMessage()) for record in caplog.records]
        caplog.clear()
        return found

    return take


@pytest.fixture
def site(ca: Authority) -> Lineage:
    """Valid for 90 days from now on: due at 60, late at 75, in trouble at 85.5."""
    return lineage(ca.issue("a.test", not_before=NOW, not_after=END))


def data(caplog: pytest.LogCaptureFixture) -> dict[str, object]:
    [record] = caplog.records
    found = record.__dict__["data"]
    assert isinstance(found, dict)
    return found


# The end comes nearer


def test_every_stage_of_the_end_is_said_once(site: Lineage, said: Said):
    heard: list[tuple[datetime, tuple[str, str]]] = []
    for hours in range(92 * 24):
        wall = NOW + hours * HOUR
        vigil.look_at(site, 100.0 + hours, wall)
        heard += [(wall, each) for each in said()]
    assert heard == [
        (NOW + 60 * DAY, DUE),
        (NOW + 75 * DAY + HOUR, LATE),
        (NOW + 85.5 * DAY + HOUR, LAST),
        (END, EXPIRED),
    ]


def test_the_end_is_told_with_what_is_left_and_what_to_do(site: Lineage, caplog: pytest.LogCaptureFixture):
    vigil.look_at(site, 100.0, NOW + 60 * DAY)
    assert data(caplog) == {
        "certificate": "site",
        "expires": END.isoformat(),
        "left": "30 days",
        "hint": "certbot renew, and see why it has not: certbot certificates",
    }
    caplog.clear()
    vigil.look_at(site, 100.0, NOW - SECOND)
    assert "timedatectl" in str(data(caplog)["hint"])


@pytest.mark.parametrize(("day", "then"), [(0, []), (60, []), (80, [LATE]), (88, [LAST]), (91, []), (-1, [])])
def test_a_start_that_reported_what_is_served_says_only_what_its_findings_did_not(
    site: Lineage, said: Said, day: int, then: list[tuple[str, str]]
):
    wall = NOW + day * DAY
    vigil.note_stage(site, wall)
    for _ in range(3):
        vigil.look_at(site, 100.0, wall)
    assert said() == then


def test_a_clock_that_goes_back_is_told_and_so_is_its_return(site: Lineage, said: Said):
    for wall, heard in (
        (NOW, []),
        (NOW - SECOND, [NOT_YET]),
        (NOW, [AGAIN]),
        (END, [EXPIRED]),
        (END - SECOND, [LAST]),
        (NOW, []),
        (END, [EXPIRED]),
        (NOW, [AGAIN]),
    ):
        vigil.look_at(site, 100.0, wall)
        assert said() == heard


def test_a_renewal_that_was_reported_begins_anew(site: Lineage, said: Said, ca: Authority):
    vigil.look_at(site, 100.0, END)
    said()
    site.active = active(ca.issue("a.test", not_before=END - DAY, not_after=END + 89 * DAY))
    vigil.note_stage(site, END)
    vigil.look_at(site, 110.0, END)
    assert said() == []
    vigil.look_at(site, 120.0, END + 59 * DAY)
    assert said() == [DUE]


# Files that stay wrong


def test_files_that_are_not_whole_are_told_after_half_a_minute(site: Lineage, said: Said):
    site.differs(100.0)
    site.unsettle([PROBLEM], 100.0)
    for now, heard in (
        (100.0, []),
        (100.0 + PATIENCE - 0.1, []),
        (100.0 + PATIENCE, [UNUSABLE]),
        (100.0 + ALARM - 0.1, []),
        (100.0 + ALARM, [DIFFERS]),
        (100.0 + 2 * ALARM, []),
    ):
        vigil.look_at(site, now, NOW)
        assert said() == heard
    site.settled()
    site.differs(1000.0)
    site.unsettle([PROBLEM], 1000.0)
    vigil.look_at(site, 1000.0 + PATIENCE, NOW)
    vigil.look_at(site, 1000.0 + ALARM, NOW)
    assert said() == [UNUSABLE, DIFFERS]


def test_the_reason_is_the_present_one(site: Lineage, caplog: pytest.LogCaptureFixture):
    site.differs(100.0)
    site.unsettle([Problem("/etc/ssl/site.key", "certificates[0].key", "the file is cut")], 100.0)
    site.unsettle([PROBLEM], 120.0)
    vigil.look_at(site, 100.0 + PATIENCE, NOW)
    assert data(caplog) == {"certificate": "site", "problem": str(PROBLEM), "hint": "wait"}


def test_a_refusal_that_stays_is_an_alarm_as_well(site: Lineage, said: Said):
    site.differs(100.0)
    site.refuse(REFUSAL)
    for now, heard in ((100.0 + PATIENCE, []), (100.0 + ALARM, [DIFFERS]), (1000.0, [])):
        vigil.look_at(site, now, NOW)
        assert said() == heard


def test_a_jump_of_the_clock_moves_no_deadline(site: Lineage, said: Said):
    site.differs(100.0)
    site.unsettle([PROBLEM], 100.0)
    for wall in (NOW + 59 * DAY, NOW):
        vigil.look_at(site, 101.0, wall)
    assert said() == []


# At the start


@pytest.mark.parametrize("severity", ["error", "warning", "info"])
def test_a_finding_has_its_own_level(said: Said, caplog: pytest.LogCaptureFixture, severity: str):
    finding = Finding("order", severity, "wrong order", "write it anew")  # type: ignore[arg-type]
    vigil.say_finding("site", "/etc/ssl/site.pem", finding)
    assert data(caplog) == {
        "certificate": "site",
        "file": "/etc/ssl/site.pem",
        "rule": "order",
        "says": "wrong order",
        "hint": "write it anew",
    }
    assert said() == [(severity.upper(), "about a certificate")]


def test_a_start_with_the_last_good_certificate_says_why(
    site: Lineage, said: Said, caplog: pytest.LogCaptureFixture
):
    vigil.say_last_good(site)
    assert said() == []
    site.differs(100.0)
    site.unsettle([PROBLEM], 100.0)
    vigil.say_last_good(site)
    assert data(caplog) == {
        "certificate": "site",
        "generation": 1,
        "expires": END.isoformat(),
        "problem": str(PROBLEM),
        "hint": "wait",
    }
    assert said() == [("ERROR", "the certificate files cannot be served, the last good certificate is")]
    vigil.look_at(site, 100.0 + PATIENCE, NOW)
    assert said() == []  # it was just said
    site.refuse(REFUSAL)
    vigil.say_last_good(site)
    assert data(caplog).items() >= {"rule": "expired", "says": "it expired", "hint": "renew it"}.items()


# The disk


def test_what_the_disk_does_not_take_is_told_once_until_it_does(site: Lineage, said: Said, ca: Authority):
    other = lineage(ca.issue("b.test"), name="other")
    error = OSError(errno.ENOSPC, "No space left on device")
    directory = Path("/var/lib/botproxy/certs")
    complaint = ("ERROR", "a certificate is served, and cannot be written down")
    praise = ("INFO", "a certificate can be written down again")
    vigil.praise_disk(site, "generation")
    assert said() == []
    for _ in range(3):
        vigil.complain_of_disk(site, "generation", directory, error)
        vigil.complain_of_disk(site, "audit", directory, error)
        vigil.complain_of_disk(other, "generation", directory, error)
    assert said() == [complaint] * 3
    vigil.praise_disk(site, "refusal")
    assert said() == []
    for _ in range(3):
        vigil.praise_disk(site, "generation")
    assert said() == [praise]
    vigil.complain_of_disk(site, "audit", directory, error)
    assert said() == []
    vigil.complain_of_disk(site, "generation", directory, error)
    assert said() == [complaint]


def test_the_complaint_names_what_is_missing_where_and_the_reason(
    site: Lineage, caplog: pytest.LogCaptureFixture
):
    vigil.complain_of_disk(site, "audit", Path("/var/lib"), OSError(errno.ENOSPC, "No space left on device"))
    told = data(caplog)
    assert (told["certificate"], told["what"], told["directory"], told["why"]) == (
        "site",
        "audit",
        "/var/lib",
        "No space left on device",
    )
