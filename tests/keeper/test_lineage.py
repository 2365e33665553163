"""What is known of one certificate on its way through its renewals."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from botproxy.errors import Problem
from botproxy.keeper.lineage import ALARM, REST, Lineage, serial_text
from botproxy.keeper.states import State, WrongStep
from botproxy.keeper.store import Refusal
from tests.certs import DAY, NOW, Authority
from tests.keeper.conftest import lineage

PROBLEMS: Sequence[Problem] = [
    Problem("/etc/ssl/site.pem", "certificates[0].chain", "the file is empty", "wait")
]
REFUSAL = Refusal("ab", "expired", "it expired", "renew it", NOW.isoformat(), final=False)


@pytest.fixture
def site(ca: Authority) -> Lineage:
    return lineage(ca.issue("a.test"))


def test_a_move_is_told_and_a_wrong_one_is_refused(site: Lineage, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG, "botproxy")
    site.move(State.CHANGED)
    with pytest.raises(WrongStep):
        site.move(State.COMMITTED)
    assert site.state is State.CHANGED
    [record] = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.__dict__["data"] == {"certificate": "site", "state": "changed", "was": "active"}


def test_files_that_are_not_whole_are_looked_at_ever_more_rarely(site: Lineage):
    site.differs(100.0)
    site.unsettle(PROBLEMS, 100.0)
    assert site.unsettled is not None
    assert site.state is State.SETTLING
    moments = [100.0]
    for _ in range(9):
        moments.append(site.unsettled.next_look)
        site.unsettle(PROBLEMS, moments[-1])
    waits = [round(later - earlier, 6) for earlier, later in pairwise(moments)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert site.unsettled.since == 100.0


def test_looks_for_other_reasons_do_not_make_the_waits_longer(site: Lineage):
    site.differs(100.0)
    site.unsettle(PROBLEMS, 100.0)
    other = [replace(PROBLEMS[0], says="the file is cut")]
    for moment in (100.01, 100.05, 100.09):
        site.unsettle(other, moment)
    assert site.unsettled is not None
    assert site.unsettled.next_look == 100.1
    assert site.unsettled.problems == other


def test_settled_files_end_all_that_was_wrong(site: Lineage):
    site.differs(100.0)
    site.unsettle(PROBLEMS, 100.0)
    site.alarmed = True
    site.settled()
    assert site.state is State.ACTIVE
    assert (site.refusal, site.unsettled, site.differs_since) == (None, None, None)
    assert not site.alarmed
    site.settled()
    assert site.state is State.ACTIVE


@pytest.mark.parametrize("state", [State.ACTIVE, State.REJECTED, State.ROLLED_BACK])
def test_files_that_differ_end_a_rest_and_the_first_time_counts(site: Lineage, state: State):
    site.state = state
    site.differs(100.0)
    site.differs(200.0)
    assert site.state is State.CHANGED
    assert site.differs_since == 100.0


def test_files_that_settle_are_not_changed_anew(site: Lineage):
    site.differs(100.0)
    site.unsettle(PROBLEMS, 100.0)
    site.differs(101.0)
    assert site.state is State.SETTLING


def test_files_are_either_refused_or_not_whole(site: Lineage):
    site.differs(100.0)
    site.unsettle(PROBLEMS, 100.0)
    site.refuse(REFUSAL)
    assert (site.state, site.refusal, site.unsettled) == (State.REJECTED, REFUSAL, None)
    site.differs(101.0)
    site.unsettle(PROBLEMS, 101.0)
    assert site.state is State.SETTLING
    assert site.refusal is None
    assert site.unsettled is not None
    assert site.unsettled.next_look == 101.1


def test_what_is_served_differs_from_the_files_for_two_minutes_before_that_is_an_alarm(site: Lineage):
    assert not site.is_alarming(1e9)
    site.differs(100.0)
    assert not site.is_alarming(100.0 + ALARM - 0.1)
    assert site.is_alarming(100.0 + ALARM)


@pytest.mark.parametrize(
    ("final", "digest", "alone"), [(True, "ab", True), (True, "cd", False), (False, "ab", False)]
)
def test_what_was_refused_for_good_is_left_alone(site: Lineage, final: bool, digest: str, alone: bool):
    assert not site.leaves_alone(digest, 100.0, NOW)
    site.differs(100.0)
    site.refuse(replace(REFUSAL, final=final))
    assert site.leaves_alone(digest, 100.0, NOW) is alone


def test_what_was_refused_for_good_is_better_than_one_that_has_expired_since(site: Lineage):
    end = site.active.certificate.not_after
    site.differs(100.0)
    site.refuse(replace(REFUSAL, final=True))
    assert site.leaves_alone("ab", 100.0, end - DAY)
    assert not site.leaves_alone("ab", 100.0, end)


@pytest.mark.parametrize(("rule", "alone"), [("went_back", True), ("rolled_back", False)])
def test_whoever_went_back_to_an_expired_one_meant_it(site: Lineage, rule: str, alone: bool):
    end = site.active.certificate.not_after
    site.differs(100.0)
    site.refuse(replace(REFUSAL, rule=rule, since=(end + DAY).isoformat(), final=True))
    assert site.leaves_alone("ab", 100.0, end + 2 * DAY) is alone


@pytest.mark.parametrize("since", ["", "yesterday", "2026-01-01"])
def test_a_date_that_is_none_is_as_good_as_long_ago(site: Lineage, since: str):
    site.differs(100.0)
    site.refuse(replace(REFUSAL, rule="went_back", since=since, final=True))
    assert site.leaves_alone("ab", 100.0, NOW)
    assert not site.leaves_alone("ab", 100.0, site.active.certificate.not_after)


def test_what_was_rolled_back_rests_before_it_is_tried_again(site: Lineage):
    rolled_back = replace(REFUSAL, rule="rolled_back")
    site.differs(100.0)
    site.state = State.VERIFYING
    site.rolled_back(rolled_back, 100.0)
    assert (site.state, site.refusal, site.again_at) == (State.ROLLED_BACK, rolled_back, 100.0 + REST)
    assert site.leaves_alone("ab", 100.0 + REST - 0.1, NOW)
    assert not site.leaves_alone("cd", 100.0, NOW)
    assert not site.leaves_alone("ab", 100.0 + REST, NOW)


# Troubles


def test_a_certificate_that_is_served_kept_and_fresh_is_no_trouble(site: Lineage):
    assert site.troubles(100.0, NOW) == []
    site.differs(100.0)
    site.unsettle(PROBLEMS, 100.0)
    assert site.troubles(100.0 + ALARM - 1, NOW) == []  # programs write slowly


def test_a_refusal_is_a_trouble_at_once(site: Lineage):
    site.differs(100.0)
    site.refuse(REFUSAL)
    for now in (100.0, 100.0 + ALARM):
        assert site.troubles(now, NOW) == ["site: the files are refused (expired): it expired"]


def test_files_that_cannot_be_used_are_a_trouble_once_that_was_said(site: Lineage):
    site.differs(100.0)
    site.unsettle(PROBLEMS, 100.0)
    trouble = [f"site: the files cannot be used: {PROBLEMS[0]}"]
    assert site.troubles(100.0 + ALARM, NOW) == trouble
    assert site.unsettled is not None
    site.unsettled.said = True
    assert site.troubles(101.0, NOW) == trouble


def test_anything_else_that_differs_is_a_trouble_after_the_alarm(site: Lineage):
    site.differs(100.0)
    assert site.troubles(101.0, NOW) == []
    assert site.troubles(100.0 + ALARM, NOW) == ["site: what is served is not what the files hold"]


def test_what_could_not_be_kept_is_a_trouble(ca: Authority):
    [trouble] = lineage(ca.issue("a.test"), 0).troubles(100.0, NOW)
    assert "could not be kept" in trouble


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (-2, "not yet valid"),
        (0, None),
        (70, None),
        (76, "renewal late"),
        (86, "renewal last moment"),
        (89, "expired"),
    ],
)
def test_an_end_that_is_near_is_a_trouble_when_it_is_late(ca: Authority, at: int, said: str | None):
    site = lineage(ca.issue("a.test", not_before=NOW - DAY, not_after=NOW + 89 * DAY))
    troubles = site.troubles(100.0, NOW + at * DAY)
    assert troubles == ([f"site: the certificate that is served is {said}"] if said else [])


# What is told


def test_no_secret_is_told(site: Lineage):
    site.differs(100.0)
    site.refuse(REFUSAL)
    told = json.dumps(site.status(130.0, NOW))
    assert "PRIVATE" not in told + repr(site.active)
    assert site.active.certificate.fingerprint in told


def test_the_status_says_what_is_served_and_what_is_wrong(site: Lineage):
    fine = site.status(100.0, NOW)
    assert (fine["name"], fine["path"], fine["chain"]) == ("site", "certificates[0]", "/etc/ssl/site.pem")
    assert (fine["state"], fine["generation"], fine["stage"]) == ("active", 1, "fine")
    assert (fine["matches_files"], fine["differs_seconds"]) == (True, None)
    assert fine["refused"] is fine["unsettled"] is None
    assert fine["names"] == ["a.test"]
    site.differs(100.0)
    site.unsettle(PROBLEMS, 100.0)
    broken = site.status(130.04, NOW)
    assert (broken["state"], broken["matches_files"], broken["differs_seconds"]) == ("settling", False, 30.0)
    assert broken["unsettled"] == [{"problem": str(PROBLEMS[0]), "hint": "wait"}]
    site.refuse(REFUSAL)
    assert site.status(140.0, NOW)["refused"] == {
        "rule": "expired",
        "says": "it expired",
        "hint": "renew it",
        "since": REFUSAL.since,
    }


@pytest.mark.parametrize(("serial", "text"), [(0xABC, "0abc"), (0xAB, "ab"), (1, "01")])
def test_a_serial_number_is_written_in_whole_bytes(serial: int, text: str):
    assert serial_text(serial) == text


def test_the_password_file_is_one_of_the_files(site: Lineage):
    assert site.files == ["/etc/ssl/site.pem", "/etc/ssl/site.key"]
    site.entry = site.entry.model_copy(update={"password_file": "/etc/ssl/password"})
    assert site.files == ["/etc/ssl/site.pem", "/etc/ssl/site.key", "/etc/ssl/password"]
