"""What is wrong with a configuration, in words for the person who wrote it.

Collects faults in the order they are found and tells them in the order of the
file, each with its place, what was expected, what was found, and a hint. All
wording of the validation library ends here. What may be a secret is described,
never shown. Knows no YAML: `load` says where each value was written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path as Directory

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from botproxy.config.examples import example
from botproxy.config.keys import dotted, is_secret, meaning, name, names_at
from botproxy.config.units import Fault, Path, Refused
from botproxy.errors import ConfigError, Problem

_SHOWN = 40
"""Characters of a value that are worth showing."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written."""

    where: str
    """`file:line`, or the name of the option."""
    line: int
    """Orders problems; options come behind every line."""
    directory: Directory
    """What relative file names in this value are relative to."""
    written: str | None = None
    """A number or a word as it was written, where YAML reads it as something else than text."""


class Report:
    """Everything wrong with one configuration."""

    def __init__(self, root: Place) -> None:
        self.places: dict[Path, Place] = {(): root}
        self._problems: dict[Problem, int] = {}
        self._unread: set[Path] = set()

    def add(self, path: Path, fault: Fault, *, place: Place | None = None) -> None:
        """Blames `path`, on the line of the nearest thing around it that was written."""
        place = place or self.places[self._written(path)]
        says = f"expected {fault.expected}, found {fault.found or 'something else'}"
        hint = fault.hint or f"for example: {example(path)}"
        self._problems[Problem(place.where, dotted(path), says, hint)] = place.line

    def add_unread(self, path: Path, fault: Fault) -> None:
        """As `add`, for a value that could not be read: nothing more is said about it."""
        self.add(path, fault)
        self._unread.add(path)

    def explain(self, error: ValidationError) -> None:
        """Adds everything that the schema refused."""
        for detail in error.errors(include_url=False):
            where: Path = tuple(step for step in detail["loc"] if step != "[key]")
            for fault in _faults(detail, where):
                path = self._blamed(where, fault, missing=detail["type"] == "missing")
                if not self._is_unread(path):
                    self.add(path, self._described(fault, path, detail["input"]))

    def contradict(self, faults: Iterable[Fault]) -> None:
        """Adds contradictions, each of which says what it found and where."""
        for fault in faults:
            path = self._blamed((), fault, missing=False)
            if not self._is_unread(path):
                self.add(path, fault)

    def problems(self) -> list[Problem]:
        """Everything that was added, in the order of the file."""
        return sorted(self._problems, key=self._problems.__getitem__)

    def finish(self) -> None:
        """Raises ConfigError with all of them, if there are any."""
        if self._problems:
            raise ConfigError(self.problems())

    def where(self, path: Path) -> str:
        """Where `path`, or the nearest thing around it, was written."""
        return self.places[self._written(path)].where

    def _is_unread(self, path: Path) -> bool:
        return any(path[:length] in self._unread for length in range(len(path) + 1))

    def _blamed(self, where: Path, fault: Fault, *, missing: bool) -> Path:
        if fault.at is not None and fault.at not in self.places and fault.against is not None:
            written = self._written(fault.at)
            return fault.at if len(written) > 1 else fault.against
        path = fault.at or where
        return path if missing or fault.at else self._written(path)

    def _written(self, path: Path) -> Path:
        while path not in self.places:
            path = path[:-1]
        return path

    def _described(self, fault: Fault, path: Path, value: object) -> Fault:
        place = self.places.get(path)
        written = place.written if place else None
        secret = is_secret(path)
        found = fault.found or describe(value, written, secret=secret)
        hint = fault.hint or (None if secret else _yaml_hint(value, written, fault.expected, path))
        return replace(fault, found=found, hint=hint)


def describe(value: object, written: str | None = None, *, secret: bool) -> str:
    """A value in a few words: escaped, cut, and not at all if it may be a secret."""
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping" if value else "an empty mapping"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case str() if secret:
            return "text (not shown)" if value else "empty text"
        case str():
            return _quoted(value)
        case bool() if secret:
            return "true or false"
        case _ if secret:
            return "a number"
        case bool():
            return written or str(value).lower()
        case _:
            return (written or str(value))[:_SHOWN]


def _quoted(text: str) -> str:
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return json.dumps(shown)


def _yaml_hint(value: object, written: str | None, expected: str, path: Path) -> str | None:
    if isinstance(value, bool) and written and written.lower() not in ("true", "false"):
        quotable = expected == "text" or f'"{written}"' in expected
        instead = "if text is meant, write it in quotes" if quotable else f"for example: {example(path)}"
        return f"YAML reads {written} as {str(value).lower()}; {instead}"
    if isinstance(value, int | float) and written and f'"{written}"' in expected:
        return f'write it in quotes: "{written}"'
    return None


# What the validation library says, in our words


def _faults(detail: ErrorDetails, path: Path) -> Iterable[Fault]:
    context = detail.get("ctx", {})
    value = detail["input"]
    refused = context.get("error")
    if isinstance(refused, Refused):
        if detail["loc"][-1:] == ("[key]",):
            return [replace(fault, found=fault.found or f'"{name(str(value))}"') for fault in refused.faults]
        return refused.faults
    match detail["type"]:
        case "missing":
            return [Fault("this key", "nothing", hint=_sentence(meaning(path)))]
        case "extra_forbidden":
            return [_unknown(str(path[-1]), names_at(path[:-1]))]
        case "literal_error":
            options = str(context["expected"]).replace("'", '"')
            word = isinstance(value, str) and value[:1].isalpha()  # numbers are never meant so
            nearest = _nearest(value, options.split('"')[1::2]) if word else None
            return [Fault(options, hint=nearest)]
        case "dict_type" | "model_type":
            names = names_at(path)
            return [Fault("a mapping", hint=f"its keys are {', '.join(names)}" if names else None)]
        case "greater_than_equal":
            return [Fault(f"a whole number of at least {context['ge']}")]
        case "less_than_equal":
            return [Fault(f"a whole number of at most {context['le']}")]
        case "bool_type":
            meant = _WORDS.get(value.lower()) if isinstance(value, str) else None
            return [Fault("true or false", hint=f"write {meant}, without quotes" if meant else None)]
        case "int_type":
            digits = isinstance(value, str) and any(digit in value for digit in "0123456789")
            return [
                Fault("a whole number", hint="write decimal digits alone, without quotes" if digits else None)
            ]
        case "too_short":
            # Entries that were refused do not count, and have their own problems.
            return [] if value else [Fault("at least one entry", hint=_sentence(meaning(path)))]
        case other:
            return [Fault(_EXPECTED.get(other, "another value"))]


_EXPECTED = {
    "string_type": "text",
    "tuple_type": "a list",
}
_WORDS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}


def _sentence(docstring: str) -> str | None:
    """A docstring as a hint: lower case, except where it begins with an abbreviation; no full stop."""
    lower = docstring if docstring[1:2].isupper() else docstring[:1].lower() + docstring[1:]
    return lower.rstrip(".") or None


def _unknown(key: str, known: list[str]) -> Fault:
    return Fault(
        "a known key", f'"{name(key)}"', hint=_nearest(key, known) or f"known here: {', '.join(known)}"
    )


def _nearest(word: str, known: list[str]) -> str | None:
    nearest = get_close_matches(word[:_SHOWN].lower().replace("-", "_"), known, 1)
    return f'did you mean "{nearest[0]}"?' if nearest else None
