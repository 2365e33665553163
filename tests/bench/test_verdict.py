"""What lets a change through the gate, and what does not."""

from __future__ import annotations

import pytest

from bench.micro.verdict import LAYOUT, SHORT, TOLERANCE, accepted, compare, row


def failed(base: dict[str, float], tree: dict[str, float], *lines: str) -> list[str]:
    return [each.name for each in compare(base, tree, accepted(lines)) if each.failed]


@pytest.mark.parametrize(
    ("now", "fails"),
    [
        (50_000, False),
        (100_000, False),
        (100_000 * (1 + TOLERANCE) - 1, False),
        (100_000 * (1 + TOLERANCE) + 1, True),
    ],
)
def test_more_than_the_tolerance_fails(now, fails):
    assert failed({"route": 100_000}, {"route": now}) == (["route"] if fails else [])


def test_what_another_layout_of_memory_costs_decides_nothing_about_a_short_stage():
    """Seen: 4,437 and 4,805 instructions of one piece of code that no commit between had touched."""
    assert failed({"chunked body out": 4_437}, {"chunked body out": 4_805}) == []
    assert failed({"route": 10_000}, {"route": 10_000 + LAYOUT}) == []
    assert failed({"chunked body in": 10_000}, {"chunked body in": 10_000 + LAYOUT + 1}) == [
        "chunked body in"
    ]
    assert failed({"client": 1_000}, {"client": 1_000 * (1 + SHORT) + 1}) == ["client"]


def test_one_that_grew_fails_however_much_others_shrank():
    assert failed({"a": 1e5, "b": 1e5}, {"a": 1e4, "b": 1.1e5}) == ["b"]


def test_a_commit_accepts_a_growth_of_what_it_names_up_to_what_it_says():
    base = {"request fields": 1e5, "served: handshake + request": 1e5}
    tree = {"request fields": 1.1e5, "served: handshake + request": 1.1e5}
    assert failed(base, tree, "request fields +11%, because they are more") == ["served: handshake + request"]
    assert failed(base, tree, "request fields +9%") == list(base)
    assert failed(base, tree, "served: handshake + request +10.5 %", "request fields +20%", "whatever") == []


@pytest.mark.parametrize(
    ("name", "line", "passes"),
    [
        ("route", "", False),
        ("route", "route +500%, because it is slow", False),
        ("route", "route anew, because it has another name", True),
        ("route", "stages anew", True),
        ("route", "served anew", False),
        ("served: request", "served anew: another bot", True),
        ("served: request", "stages anew", False),
    ],
)
def test_what_has_no_base_passes_only_when_a_commit_says_so(name, line, passes):
    (new,) = compare({}, {name: 100.0}, accepted([line]))
    assert new.failed is not passes
    assert row(new).endswith("accepted without a base" if passes else "NOT COMPARED: has no base")


def test_what_no_longer_works_fails_also_when_it_is_new():
    found = compare({"route": 100.0}, {}, {}, broken=("route", "other"))
    assert [(each.name, each.failed) for each in found] == [("route", True), ("other", True)]


def test_a_row_shows_both_counts_and_the_growth():
    (grown,) = compare({"route": 20_000}, {"route": 21_000}, {})
    assert row(grown).split() == ["route", "20,000", "21,000", "+5.00%", "more", "than", "3%"]
