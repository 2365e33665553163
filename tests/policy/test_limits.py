"""Token buckets and the rate that an upload must reach."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botproxy.policy.limits import address_key, admit, too_slow

NOW = 1_000_000.0


def spend(times: list[float], rate: float, burst: int) -> list[float | None]:
    state, waits = 0.0, []
    for now in times:
        state, wait = admit(state, now, rate, burst)
        waits.append(wait)
    return waits


def test_a_burst_passes_and_the_next_waits_for_one_token() -> None:
    waits = spend([NOW] * 21, rate=10.0, burst=20)
    assert waits[:20] == [None] * 20
    assert waits[20] == pytest.approx(0.1, abs=1e-6)


def test_a_refused_request_spends_nothing() -> None:
    assert spend([NOW, NOW, NOW, NOW, NOW + 1.0], rate=1.0, burst=1)[-1] is None


def test_waiting_as_told_is_enough() -> None:
    state, _ = admit(0.0, NOW, 0.5, 1)
    same, wait = admit(state, NOW + 0.3, 0.5, 1)
    assert same == state
    assert wait == pytest.approx(1.7, abs=1e-6)
    assert admit(state, NOW + 0.3 + (wait or 0), 0.5, 1)[1] is None


def test_a_long_pause_fills_the_bucket_and_no_more() -> None:
    assert spend([NOW] * 5 + [NOW + 3600] * 4, rate=1.0, burst=3).count(None) == 6


@given(
    st.lists(st.floats(0, 5), min_size=1, max_size=60),
    st.sampled_from([0.1, 1.0, 7.0, 100.0, 12345.0]),
    st.integers(1, 30),
)
def test_never_more_than_the_burst_and_the_rate(gaps: list[float], rate: float, burst: int) -> None:
    """And never fewer than a bucket of exact arithmetic, which refills while nobody spends."""
    now, times = NOW, []
    for gap in gaps:
        now += gap
        times.append(now)
    waits = spend(times, rate, burst)
    tokens, last = float(burst), NOW
    for now, wait in zip(times, waits, strict=True):
        tokens, last = min(float(burst), tokens + (now - last) * rate), now
        if wait is None:
            assert tokens >= 1 - 1e-4 * rate
            tokens = max(0.0, tokens - 1)
        else:
            assert tokens < 1 + 1e-4 * rate
            assert wait == pytest.approx((1 - tokens) / rate, abs=1e-3)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("203.0.113.7", "203.0.113.7", True),
        ("203.0.113.7", "203.0.113.8", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:0:1::", "2001:db8:0:0:2::", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:203.0.113.7", "203.0.113.7", True),
        ("::ffff:203.0.113.7", "::ffff:203.0.113.8", False),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_a_customer_counts_once(one: str, other: str, same: bool) -> None:
    assert (address_key(one) == address_key(other)) == same


@pytest.mark.parametrize(
    ("received", "waited", "slow"),
    [(9_999, 20.0, True), (10_000, 20.0, False), (0, 0.1, True), (0, 0.0, False)],
)
def test_an_upload_must_reach_its_rate(received: int, waited: float, slow: bool) -> None:
    assert too_slow(received, waited, 500) == slow


def test_without_a_rate_no_upload_is_too_slow() -> None:
    assert not too_slow(0, 1e9, 0)
