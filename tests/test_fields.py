"""The lines of a head: however they are made and whatever is remembered, they mean the same."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from botproxy.fields import Fields, Recent

Pair = tuple[bytes, bytes]
NAMES = st.sampled_from(
    [b"Host", b"host", b"HOST", b"A", b"A-B", b"X-A", b"Accept", b"Content-Length", b"Ho"]
)
VALUES = st.sampled_from([b"1", b"a: b", b"A: 1", b"Host: x", b":", b"caf\xe9", b"a  b", b"x" * 300])
HEADS = st.lists(st.lists(st.tuples(NAMES, VALUES), max_size=5), min_size=1, max_size=6)


def block(pairs: list[Pair]) -> bytes:
    return b"".join(name + b": " + value + b"\r\n" for name, value in pairs)


def plain(pairs: list[Pair]) -> list[tuple[bytes, bytes, bytes]]:
    return [(name.lower(), name, value) for name, value in pairs]


@given(HEADS)
def test_what_was_seen_before_changes_nothing(heads: list[list[Pair]]) -> None:
    recent: Recent = {}
    for pairs in heads:
        fields = Fields.scanned(block(pairs), recent)
        assert list(fields) == plain(pairs)
        assert fields == Fields.of(*pairs)
        assert list(fields.lines) == [name + b": " + value for name, value in pairs]


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8))
def test_values_are_found_by_the_name_in_any_spelling(pairs: list[Pair]) -> None:
    fields = Fields.of(*pairs)
    for name in {lower for lower, _, _ in plain(pairs)} | {b"not-there"}:
        values = [value for lower, _, value in plain(pairs) if lower == name]
        assert fields.values(name) == values
        assert fields.sole(name) == (values[0] if len(values) == 1 else None)
        assert list(fields.without({name})) == [field for field in plain(pairs) if field[0] != name]


def test_a_head_of_many_fields_is_not_remembered_and_means_the_same() -> None:
    pairs = [(b"X-%d" % number, b"1") for number in range(90)]
    recent: Recent = {}
    assert list(Fields.scanned(block(pairs), recent)) == plain(pairs)
    assert not recent


def test_a_head_of_long_names_is_not_remembered_and_means_the_same() -> None:
    recent: Recent = {}

    def scan(number: int) -> None:
        pairs = [(b"X-%d-%d-%b" % (number, each, b"y" * 60), b"1") for each in range(40)]
        assert list(Fields.scanned(block(pairs), recent)) == plain(pairs)
        assert list(Fields.of(*pairs)) == plain(pairs)

    scan(0)
    before = sys.getallocatedblocks()
    for number in range(100):
        scan(number)
    assert sys.getallocatedblocks() - before < 1000
    assert not recent
