"""Durations, sizes and rates as people write them: `30s`, `32MiB`, `20/s`.

Pure conversions between text and numbers; each says what it expected when it
cannot read a value, and how the value was probably meant. `Refused` is how this
folder says so everywhere. Nothing here knows a configuration key; `values` has
the other kinds of text, `schema` puts both to use.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

Path = tuple[str | int, ...]
"""Where a value stands in the configuration: keys, and indices into lists."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What was wrong with a value, without the value itself: it may be a secret."""

    expected: str
    found: str | None = None
    """A phrase of ours; by default `config.explain` describes the value where that is safe."""
    hint: str | None = None
    at: Path | None = None
    """The key to blame, from the root, where it is not the value under validation."""
    against: Path | None = None
    """The other key of a contradiction, blamed when `at` is a default that nobody wrote."""


class Refused(ValueError):
    """A value, or several that contradict each other, with everything that is wrong."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__(
            "; ".join(
                f"expected {fault.expected}" + (f", found {fault.found}" if fault.found else "")
                for fault in faults
            )
        )
        self.faults = faults


SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
LONGEST = 3650 * 86400.0
"""Ten years, beyond which a duration is a slip."""

# At most 12 digits: enough for everybody, and far from where int() and float() misbehave.
_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,6})?"
DURATION = re.compile(rf"({_NUMBER})(ms|s|m|h|d)")
SIZE = re.compile(r"([0-9]{1,12}) ?(B|KiB|MiB|GiB|)")
RATE = re.compile(rf"({_NUMBER})/(s|m|h)")
_NEARLY = re.compile(rf"({_NUMBER}) ?(?:r?/)? ?([A-Za-z]*)")
"""A number and some unit, for hints: `30 sec`, `32MB`, nginx's `20r/s`."""

_DURATION_EXPECTED = 'a duration like "30s" (units: ms, s, m, h, d)'
_SIZE_EXPECTED = 'a size like "32MiB" (units: B, KiB, MiB, GiB)'
_RATE_EXPECTED = 'a rate like "20/s" (units: s, m, h)'


def duration_or_zero(value: object) -> float:
    """Seconds from "500ms", "30s", "2m", "1h", "365d" or 0; a bare number is ambiguous and refused."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value == 0:
        return 0.0
    if not isinstance(value, str) or not (match := DURATION.fullmatch(value.strip())):
        raise Refused(Fault(_DURATION_EXPECTED, hint=_as_written(value, _duration_hint)))
    seconds = float(match[1]) * SECONDS[match[2]]
    if seconds > LONGEST:
        raise Refused(Fault(f"a duration of at most {duration_text(LONGEST)}"))
    return seconds


def duration(value: object) -> float:
    """As `duration_or_zero`, for a deadline that cannot be switched off."""
    seconds = duration_or_zero(value)
    if seconds == 0:
        raise Refused(Fault('a duration above zero like "30s"', hint="this one cannot be switched off"))
    return seconds


def duration_or_unlimited(value: object) -> float:
    """As `duration_or_zero`; infinity for "unlimited"."""
    return inf if value == "unlimited" else duration_or_zero(value)


def duration_text(seconds: float) -> str:
    """The shortest way to write `seconds` that is read back."""
    if seconds == inf:
        return "unlimited"
    if seconds == 0:
        return "0s"
    for unit in ("d", "h", "m", "s", "ms"):
        count = round(seconds / SECONDS[unit])
        if count >= 1 and abs(count * SECONDS[unit] - seconds) < 1e-6:
            return f"{count}{unit}"
    return f"{seconds / SECONDS['ms']:f}".rstrip("0").rstrip(".") + "ms"


def size(value: object) -> int:
    """Bytes from "32MiB", "16KiB", "512B" or a whole number."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12:
        return value
    if isinstance(value, str) and (match := SIZE.fullmatch(value.strip())):
        return int(match[1]) * BYTES[match[2]]
    raise Refused(Fault(_SIZE_EXPECTED, hint=_as_written(value, _size_hint)))


def size_between(least: int, most: int | None = None) -> Callable[[object], int]:
    """As `size`, within bounds."""

    def bounded(value: object) -> int:
        count = size(value)
        if count < least:
            raise Refused(Fault(f"a size of at least {size_text(least)}", hint=_no_unlimited(count)))
        if most is not None and count > most:
            raise Refused(Fault(f"a size of at most {size_text(most)}"))
        return count

    return bounded


def size_text(count: int) -> str:
    """The shortest way to write `count` bytes that `size` reads back."""
    for unit in ("GiB", "MiB", "KiB"):
        if count and count % BYTES[unit] == 0:
            return f"{count // BYTES[unit]}{unit}"
    return f"{count}B"


def rate(value: object) -> float:
    """Events per second from "20/s", "100/m" or "500/h"."""
    if isinstance(value, str) and (match := RATE.fullmatch(value.strip())):
        per_second = float(match[1]) / SECONDS[match[2]]
        if per_second > 0:
            return per_second
        raise Refused(Fault(_RATE_EXPECTED, hint="leave the key out for no limit"))
    raise Refused(Fault(_RATE_EXPECTED, hint=_as_written(value, _rate_hint)))


def rate_text(per_second: float) -> str:
    """A way to write `per_second` that `rate` reads back."""
    for unit in ("s", "m", "h"):
        count = round(per_second * SECONDS[unit])
        if count >= 1 and abs(count / SECONDS[unit] / per_second - 1) < 1e-9:
            return f"{count}/{unit}"
    return f"{per_second * SECONDS['h']:f}".rstrip("0").rstrip(".") + "/h"


# Hints


def _as_written(value: object, repair: Callable[[str, str], str | None]) -> str | None:
    """`write "30s"` for a value that nearly says so; `repair` has its number and its unit in lower case."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    match = _NEARLY.fullmatch(str(value).strip())
    repaired = repair(match[1], match[2].lower()) if match else None
    return f'write "{repaired}"' if repaired else None


def _duration_hint(number: str, unit: str) -> str | None:
    if unit.startswith(("ms", "mil")):
        return f"{number}ms"
    return f"{number}{unit[:1] or 's'}" if unit[:1] in ("", "s", "m", "h", "d") else None


def _size_hint(number: str, unit: str) -> str | None:
    units = {"": "B", "b": "B", "k": "KiB", "m": "MiB", "g": "GiB"}
    return f"{number}{units[unit[:1]]}" if unit[:1] in units and "." not in number else None


def _rate_hint(number: str, unit: str) -> str | None:
    return f"{number}/{unit[:1] or 's'}" if unit[:1] in ("", "s", "m", "h") else None


def _no_unlimited(count: int) -> str | None:
    return 'there is no "unlimited"; write the size you need, such as "1GiB"' if count == 0 else None
