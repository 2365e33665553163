"""Durations, sizes and rates: what is read, what is refused, and that text and number agree."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botproxy.config.units import (
    LONGEST,
    Fault,
    Refused,
    duration,
    duration_or_zero,
    duration_text,
    rate,
    rate_text,
    size,
    size_between,
    size_text,
)


def fault_of(read, value) -> Fault:
    with pytest.raises(Refused) as caught:
        read(value)
    (fault,) = caught.value.faults
    assert str(caught.value).startswith("expected ")
    return fault


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30), ("1.5m", 90), ("1h", 3600), ("365d", 31_536_000), (" 2s ", 2)],
)
def test_durations_have_a_unit(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    [
        30,
        0.5,
        True,
        None,
        "",
        "30",
        "30 s",
        "s",
        "-1s",
        "+1s",
        "1e3s",
        "30S",
        "1m30s",
        "٣٠s",
        "9" * 5000 + "s",
        [],
        {},
    ],
)
def test_anything_else_is_no_duration(value: object) -> None:
    assert "a duration like" in fault_of(duration, value).expected


@pytest.mark.parametrize("zero", [0, 0.0, "0s", "0ms", "0.0h"])
def test_zero_is_a_duration_only_where_it_means_something(zero: object) -> None:
    assert duration_or_zero(zero) == 0
    assert "above zero" in fault_of(duration, zero).expected


def test_false_is_not_the_duration_zero() -> None:
    fault_of(duration_or_zero, False)


def test_a_duration_beyond_ten_years_is_a_slip() -> None:
    assert duration("3650d") == LONGEST
    assert fault_of(duration, "3651d").expected == "a duration of at most 3650d"


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (30, "30s"),
        ("30 sec", "30s"),
        ("5 minutes", "5m"),
        ("100 millis", "100ms"),
        ("1HOUR", "1h"),
        ("2 weeks", None),
    ],
)
def test_a_nearly_written_duration_is_put_right(value: object, hint: str | None) -> None:
    assert fault_of(duration, value).hint == (f'write "{hint}"' if hint else None)


@pytest.mark.parametrize(
    ("value", "count"), [("32MiB", 32 * 1024**2), ("16 KiB", 16384), ("512B", 512), ("7", 7), (7, 7), (0, 0)]
)
def test_sizes_have_a_binary_unit_or_none(value: object, count: int) -> None:
    assert size(value) == count


@pytest.mark.parametrize("value", [True, -1, 1.5, "1.5MiB", "1MB", "1k", "", None, "１B", 10**12])
def test_anything_else_is_no_size(value: object) -> None:
    assert "a size like" in fault_of(size, value).expected


@pytest.mark.parametrize(
    ("value", "hint"), [("32MB", "32MiB"), ("16k", "16KiB"), ("1 G", "1GiB"), ("1TB", None)]
)
def test_a_nearly_written_size_is_put_right(value: str, hint: str | None) -> None:
    assert fault_of(size, value).hint == (f'write "{hint}"' if hint else None)


def test_sizes_have_bounds_where_they_are_asked_for() -> None:
    read = size_between(1024, 4096)
    assert [read(1024), read("4KiB")] == [1024, 4096]
    assert fault_of(read, 1023).expected == "a size of at least 1KiB"
    assert fault_of(read, 4097).expected == "a size of at most 4KiB"


def test_zero_is_not_unlimited() -> None:
    assert "unlimited" in (fault_of(size_between(1), 0).hint or "")


@pytest.mark.parametrize(
    ("text", "per_second"), [("20/s", 20), ("90/m", 1.5), ("36/h", 0.01), ("0.5/s", 0.5)]
)
def test_rates_have_a_span(text: str, per_second: float) -> None:
    assert rate(text) == pytest.approx(per_second)


@pytest.mark.parametrize("value", [20, "20", "0/s", "20/d", "-1/s", None, True, "20/"])
def test_anything_else_is_no_rate(value: object) -> None:
    assert "a rate like" in fault_of(rate, value).expected


@pytest.mark.parametrize(
    ("value", "hint"), [(20, "20/s"), ("20r/s", "20/s"), ("100/min", "100/m"), ("20", "20/s")]
)
def test_a_nearly_written_rate_is_put_right(value: object, hint: str) -> None:
    assert fault_of(rate, value).hint == f'write "{hint}"'


@given(st.integers(0, int(LONGEST) * 1000))
def test_a_duration_reads_back_from_its_text(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert duration_or_zero(duration_text(seconds)) == pytest.approx(seconds, abs=1e-6)


@given(st.integers(0, 10**12 - 1))
def test_a_size_reads_back_from_its_text(count: int) -> None:
    assert size(size_text(count)) == count


@given(st.integers(1, 10**6), st.sampled_from("smh"))
def test_a_rate_reads_back_from_its_text(count: int, span: str) -> None:
    per_second = rate(f"{count}/{span}")
    assert rate(rate_text(per_second)) == pytest.approx(per_second, rel=1e-6)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none()))
def test_whatever_comes_is_read_or_refused_without_quoting_it(value: object) -> None:
    """The caller decides whether a value may be shown; of it, a hint holds a number at most."""
    for read in (duration, duration_or_zero, size, rate):
        try:
            read(value)
        except Refused as refused:
            for fault in refused.faults:
                assert fault.found is None
                assert fault.hint is None or re.fullmatch(
                    r'write "[0-9.]+[a-zA-Z/]+"|[^"]*("[^"]*")?', fault.hint
                )
