"""Durations, sizes and rates as people write them: `30s`, `32MiB`, `20/s`.

Pure conversions between text and numbers; each says what it expected when it
cannot read a value. Nothing here knows a configuration key.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+) ?(B|KiB|MiB|GiB|)")
_RATE = re.compile(r"(\d+(?:\.\d+)?)/(s|m|h)")


def duration(value: object) -> float:
    """Seconds from "500ms", "30s", "2m", "1h", "365d" or 0; a bare number is ambiguous and refused."""
    if isinstance(value, bool):
        raise ValueError('expected a duration like "30s"')
    if value == 0:
        return 0.0
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * SECONDS[match[2]]
    raise ValueError('expected a duration like "30s" (units: ms, s, m, h, d)')


def duration_text(seconds: float) -> str:
    """The shortest way to write `seconds` that `duration` reads back."""
    if seconds == 0:
        return "0s"
    for unit in ("d", "h", "m", "s", "ms"):
        count = seconds / SECONDS[unit]
        if count >= 1 and round(count, 6) == int(round(count, 6)):
            return f"{int(round(count, 6))}{unit}"
    return f"{seconds:g}s"


def size(value: object) -> int:
    """Bytes from "32MiB", "16KiB", "512B" or a whole number."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return int(match[1]) * BYTES[match[2]]
    raise ValueError('expected a size like "32MiB" (units: B, KiB, MiB, GiB)')


def size_text(count: int) -> str:
    """The shortest way to write `count` bytes that `size` reads back."""
    for unit in ("GiB", "MiB", "KiB"):
        if count and count % BYTES[unit] == 0:
            return f"{count // BYTES[unit]}{unit}"
    return f"{count}B"


def rate(value: object) -> float:
    """Events per second from "20/s", "100/m" or "500/h"."""
    if isinstance(value, str) and (match := _RATE.fullmatch(value.strip())):
        per_second = float(match[1]) / SECONDS[match[2]]
        if per_second > 0:
            return per_second
    raise ValueError('expected a rate like "20/s" (units: s, m, h)')


def rate_text(per_second: float) -> str:
    """A way to write `per_second` that `rate` reads back."""
    for unit in ("s", "m", "h"):
        count = per_second * SECONDS[unit]
        if round(count, 6) == int(round(count, 6)):
            return f"{int(round(count, 6))}/{unit}"
    return f"{per_second:g}/s"


def _text(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern})


Duration = Annotated[
    float,
    BeforeValidator(duration),
    PlainSerializer(duration_text),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": f"^{_DURATION.pattern}$"}, {"const": 0}]}),
]
"""Seconds; written with a unit."""

Size = Annotated[
    int,
    BeforeValidator(size),
    PlainSerializer(size_text),
    Field(ge=0),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": f"^{_SIZE.pattern}$"}, {"type": "integer", "minimum": 0}]}
    ),
]
"""Bytes; written with a binary unit or as a whole number."""

Rate = Annotated[float, BeforeValidator(rate), PlainSerializer(rate_text), _text(f"^{_RATE.pattern}$")]
"""Events per second; written with the span it counts over."""
