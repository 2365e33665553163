"""Which changes of a cost fail: numbers in, sentences out.

A workload fails when it costs more than TOLERANCE above its base, unless a commit accepts more. Counted again
and again, the stages of one tree differ by up to half a percent, what is served by up to two outside OpenSSL
and by a fifth of one in it; what fails is counted once more, and the lesser counts decide. Where two trees
differ, the same code may also find its memory laid out in another way, which costs a short stage a few
hundred instructions: less than LAYOUT fails nothing, unless it is more than SHORT. What has no base, because
it does not work there or is new, fails as well: nobody knows what it has cost. `route anew` accepts that,
`stages anew` and `served anew` that of all their kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

TOLERANCE = 0.03
LAYOUT = 500
"""Instructions; a call of a Python function costs about as many."""
SHORT = 0.1
"""Share of a stage."""
WIDTH = 40
"""Of a name in the report."""

ANEW = math.inf
"""Accepted growth of what need not be compared with anything."""

_ACCEPTED = re.compile(r"(.+?) (?:\+(\d+(?:\.\d+)?) ?%|anew\b)")


@dataclass(frozen=True, slots=True)
class Compared:
    """One workload in both trees."""

    name: str
    base: float | None
    """Instructions; None: not counted there."""
    tree: float | None
    allowed: float = TOLERANCE
    """How much more it may cost, as a share."""

    @property
    def growth(self) -> float | None:
        """How much more it costs; None when there is nothing to compare."""
        if self.base is None or self.tree is None:
            return None
        return self.tree / self.base - 1

    @property
    def failed(self) -> bool:
        """Too expensive, broken here, or without a base and not accepted so."""
        if self.tree is None:
            return True
        if self.base is None or self.growth is None:
            return self.allowed != ANEW
        if self.tree - self.base <= LAYOUT:
            return self.growth > max(self.allowed, SHORT)
        return self.growth > self.allowed


def compare(
    base: Mapping[str, float],
    tree: Mapping[str, float],
    accepted: Mapping[str, float],
    broken: Iterable[str] = (),
) -> list[Compared]:
    """Every workload of `tree`, in its order, then those `broken` in it."""
    found = [Compared(name, base.get(name), cost, _allowed(name, accepted)) for name, cost in tree.items()]
    return found + [Compared(name, base.get(name), None) for name in broken]


def accepted(lines: Iterable[str]) -> dict[str, float]:
    """Workloads and the growth that is accepted of each, from lines like `route +5%, because ...`.

    ANEW for those like `route anew, because ...`.
    """
    found: dict[str, float] = {}
    for line in lines:
        if (match := _ACCEPTED.match(line)) is not None:
            name, share = match[1], float(match[2]) / 100 if match[2] else ANEW
            found[name] = max(found.get(name, 0.0), share)
    return found


def row(compared: Compared) -> str:
    """One line of the report."""
    numbers = "".join(
        f"{'-' if each is None else f'{each:,.0f}':>14}" for each in (compared.base, compared.tree)
    )
    growth = compared.growth
    if compared.tree is None:
        says = "does not work"
    elif growth is None:
        says = "accepted without a base" if compared.allowed == ANEW else "NOT COMPARED: has no base"
    else:
        says = f"{growth * 100:+.2f}%"
        if compared.failed:
            says += f"  more than {compared.allowed * 100:g}%"
    return f"{compared.name:{WIDTH}}{numbers}  {says}"


def summary(compared: Iterable[Compared]) -> str:
    """How many were compared, and which were not."""
    every = list(compared)
    lost = [each.name for each in every if each.growth is None]
    said = f"{len(every) - len(lost)} of {len(every)} workloads compared"
    return f"{said}, NOT COMPARED: {', '.join(lost)}" if lost else said


# Private


def _allowed(name: str, accepted: Mapping[str, float]) -> float:
    """A kind can only be accepted anew: a growth is somebody's own."""
    kind = "served" if name.startswith("served: ") else "stages"
    if accepted.get(kind) == ANEW:
        return ANEW
    return max(TOLERANCE, accepted.get(name, 0.0))
