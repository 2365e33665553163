"""The fields of a message head: their lines as they were sent, and where each name stands.

A line is `Name: value`: one space, nothing around the value, no line end. The heads of one
sender have mostly the same names in the same order, which is their shape. What follows from
names alone is worked out once for a shape and kept with it, so that a head costs one lookup
where each of its fields would cost several.

Decides nothing. Used by `http.head`, which makes them, and by `policy.*`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from operator import getitem
from typing import Any

_NAME = re.compile(rb"([^:]+): [^\r]*+\r\n")
_USUAL = 40
_USUAL_BYTES = 1024
"""Fields, and bytes of their names, of a head whose shape is worth remembering."""
_REMEMBERED = 128
"""Shapes at most: 2 MiB of them, whatever names a client thinks of."""


class Shape:
    """The names of a head, in order."""

    __slots__ = ("cuts", "familiar", "lower", "met", "names", "places", "plans", "single", "starts")

    def __init__(self, names: tuple[bytes, ...]) -> None:
        self.names = names
        """As they were sent."""
        self.lower = tuple(name.lower() for name in names)
        self.places: dict[bytes, tuple[int, ...]] = {}
        """Where each name stands, by its lower case."""
        for place, name in enumerate(self.lower):
            self.places[name] = (*self.places.get(name, ()), place)
        self.single = {
            name: (places[0], len(name) + 2) for name, places in self.places.items() if len(places) == 1
        }
        """Of names that stand there once: the place, and where in its line the value begins."""
        self.starts = [name + b": " for name in names]
        """With which its lines begin, which no other shape's do."""
        self.cuts = [slice(len(start)) for start in self.starts]
        """As long as those."""
        self.met = 0
        """How many heads had it."""
        self.familiar = False
        """Whether it is kept for good; such shapes are few, and may be held."""
        self.plans: dict[object, Any] = {}
        """What others have worked out from it, each under itself; it goes when the shape goes."""


def keep(shape: Shape) -> None:
    """Have `shape`, as one object, for every head like it from now on; the caller sees that they are few."""
    shape.familiar = True
    _kept[shape.names] = shape


Recent = dict[int, Shape]
"""The last shape seen with so many fields: most probably that of the next head."""


class Fields:
    """Iterates over (name in lower case, name as sent, value)."""

    __slots__ = ("lines", "shape")

    def __init__(self, lines: Sequence[bytes], shape: Shape) -> None:
        self.lines = lines
        self.shape = shape

    @classmethod
    def of(cls, *pairs: tuple[bytes, bytes]) -> Fields:
        """From names and values."""
        lines = [name + b": " + value for name, value in pairs]
        return cls(lines, _shape(tuple(name for name, _ in pairs)))

    @classmethod
    def scanned(cls, block: bytes, recent: Recent) -> Fields:
        """From lines of the form above, each with CRLF behind it. `recent`: shapes of others of its kind."""
        lines = block.split(b"\r\n")
        lines.pop()
        shape = recent.get(len(lines))
        if shape is None or [*map(getitem, lines, shape.cuts)] != shape.starts:
            names = tuple(_NAME.findall(block))
            shape = _shape(names)
            if _is_usual(names):
                recent[len(lines)] = shape
        shape.met += 1
        return cls(lines, shape)

    def sole(self, name: bytes) -> bytes | None:
        """The value of a field that stands there exactly once; `name` in lower case."""
        found = self.shape.single.get(name)
        return None if found is None else self.lines[found[0]][found[1] :]

    def values(self, name: bytes) -> list[bytes]:
        """Of all fields with this name, which is in lower case."""
        places = self.shape.places.get(name)
        if places is None:
            return []
        behind = len(name) + 2
        return [self.lines[place][behind:] for place in places]

    def without(self, names: Collection[bytes]) -> Fields:
        """As if fields with these names, in lower case, had not been sent."""
        return Fields.of(*((name, value) for lower, name, value in self if lower not in names))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fields) and list(self) == list(other)

    def __iter__(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        shape = self.shape
        for lower, name, line in zip(shape.lower, shape.names, self.lines, strict=True):
            yield lower, name, line[len(name) + 2 :]


# Private


def _is_usual(names: tuple[bytes, ...]) -> bool:
    return len(names) <= _USUAL and sum(map(len, names)) <= _USUAL_BYTES


def _shape(names: tuple[bytes, ...]) -> Shape:
    return _kept.get(names) or (_remembered(names) if _is_usual(names) else Shape(names))


_kept: dict[tuple[bytes, ...], Shape] = {}
_remembered = lru_cache(maxsize=_REMEMBERED)(Shape)
