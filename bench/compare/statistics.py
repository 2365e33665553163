"""What a few noisy rounds say: medians, how far they spread, ratios of the same round. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Of several values: the middle one, and the two between which the middle half of them lies."""

    median: float
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread | None:
    """None of nothing."""
    if not values:
        return None
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, len(values))


def ratios(values: Sequence[float], base: Sequence[float]) -> Spread | None:
    """Each value to the base of the same round; those of a round drift together."""
    return spread([value / reference for value, reference in zip(values, base, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    rank = -int(-len(ordered) * share // 1)  # rounded up
    return ordered[max(0, rank - 1)]
