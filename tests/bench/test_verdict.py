"""What lets a change through the gate, and what does not."""

from __future__ import annotations

import pytest

from bench.micro.verdict import TOLERANCE, accepted, compare, row


def failed(base: dict[str, float], tree: dict[str, float], *lines: str) -> list[str]:
    return [each.name for each in compare(base, tree, accepted(lines)) if each.failed]


@pytest.mark.parametrize(
    ("now", "fails"),
    [
        (50.0, False),
        (100.0, False),
        (100 * (1 + TOLERANCE) - 0.1, False),
        (100 * (1 + TOLERANCE) + 0.1, True),
    ],
)
def test_more_than_the_tolerance_fails(now, fails):
    assert failed({"route": 100.0}, {"route": now}) == (["route"] if fails else [])


def test_one_that_grew_fails_however_much_others_shrank():
    assert failed({"a": 100.0, "b": 100.0}, {"a": 10.0, "b": 110.0}) == ["b"]


def test_a_commit_accepts_a_growth_of_what_it_names_up_to_what_it_says():
    base = {"request fields": 100.0, "served: handshake + request": 100.0}
    tree = {"request fields": 110.0, "served: handshake + request": 110.0}
    assert failed(base, tree, "request fields +11%, because they are more") == ["served: handshake + request"]
    assert failed(base, tree, "request fields +9%") == list(base)
    assert failed(base, tree, "served: handshake + request +10.5 %", "request fields +20%", "whatever") == []


def test_what_is_new_is_named_and_passes():
    (new,) = compare({}, {"route": 100.0}, {})
    assert not new.failed
    assert row(new).endswith("new")


def test_what_no_longer_works_fails_also_when_it_is_new():
    found = compare({"route": 100.0}, {}, {}, broken=("route", "other"))
    assert [(each.name, each.failed) for each in found] == [("route", True), ("other", True)]


def test_a_row_shows_both_counts_and_the_growth():
    (grown,) = compare({"route": 2000.0}, {"route": 2100.0}, {})
    assert row(grown).split() == ["route", "2,000", "2,100", "+5.00%", "more", "than", "3%"]
