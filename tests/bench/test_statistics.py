"""Medians, spreads and ratios of rounds."""

from __future__ import annotations

import pytest

from bench.compare.statistics import percentile, ratios, spread


def test_a_spread_is_the_median_and_the_middle_half():
    found = spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert found is not None
    assert (found.median, found.low, found.high, found.count) == (3.0, 2.0, 4.0, 5)


def test_nothing_has_no_spread_and_one_value_none_to_speak_of():
    assert spread([]) is None
    found = spread([7.0])
    assert found is not None
    assert found.low == found.median == found.high == 7.0


def test_ratios_are_of_the_same_round():
    """A machine that is twice as slow in one round is so for both."""
    found = ratios([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert found is not None
    assert found.low == found.median == found.high == 0.5


def test_rounds_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100)])
def test_a_percentile_is_a_value_that_occurred(share, value):
    assert percentile(list(range(100, 0, -1)), share) == value
