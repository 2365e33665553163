"""The corpus: hostile and harmless messages, each with what must become of it.

One JSON object a line in `http1.jsonl`. `expect` is reject, accept or either; `level` is `must`
(a MUST of an RFC, or a plain attack) or `policy` (we choose to refuse what might be repaired).
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("http1.jsonl")
BEYOND_LIMITS = 17 * 1024
"""Bytes; above the limits of heads, chunk lines and extensions."""


@dataclass(frozen=True)
class Case:
    """One entry."""

    name: str
    raw: bytes
    expect: str
    level: str
    oracle: dict[str, Any]
    """The entry as it stands in the file."""

    @property
    def ends(self) -> bool:
        """Whether the sender ends its side behind the last byte."""
        return self.oracle.get("then") == "eof"

    @property
    def prefer(self) -> str | None:
        """Our choice where both are allowed."""
        return self.oracle.get("prefer")


def load(side: str) -> list[Case]:
    """All entries of one side, `request` or `response`."""
    entries = [json.loads(line) for line in FILE.read_text().splitlines()]
    return [_case(entry) for entry in entries if entry["side"] == side]


def _case(entry: dict[str, Any]) -> Case:
    raw = codecs.decode(entry["raw"], "unicode_escape").encode("latin-1")
    assert hashlib.sha256(raw).hexdigest() == entry["sha256"], entry["name"]
    return Case(entry["name"], raw, entry["expect"], entry["level"], entry)


def in_one_piece(raw: bytes) -> Iterable[bytes]:
    return [raw] if raw else []


def byte_by_byte(raw: bytes) -> Iterable[bytes]:
    """What lies behind the limit of a head is read only to be thrown away, and comes in larger pieces."""
    yield from (raw[at : at + 1] for at in range(min(len(raw), BEYOND_LIMITS)))
    yield from (raw[at : at + 1024] for at in range(BEYOND_LIMITS, len(raw), 1024))


def line_by_line(raw: bytes) -> Iterable[bytes]:
    return raw.splitlines(keepends=True)


Segmentation = Callable[[bytes], Iterable[bytes]]
SEGMENTATIONS: tuple[Segmentation, ...] = (in_one_piece, byte_by_byte, line_by_line)
