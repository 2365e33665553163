"""What the schema says about a place in the configuration.

Follows a path through `schema.Config`: which keys are known there, what a key
means, whether its value may be shown, whether it names a file. Reads types only;
no value ever comes here. `explain` and `load` ask.
"""

from __future__ import annotations

import types
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from botproxy.config.kinds import Mark
from botproxy.config.schema import Config, Section
from botproxy.config.units import Path


def dotted(path: Path) -> str:
    """`routes[0].upstream`; a step that is no plain key is escaped and cut."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{name(step)}"
    return text.removeprefix(".")


def name(key: str) -> str:
    """A key as it may be shown, whatever somebody wrote there."""
    printable = ascii(key)[1:-1]
    return printable if len(printable) <= 40 else f"{printable[:40]}..."


def names_at(path: Path) -> list[str]:
    """The keys known in the section at `path`; empty where the names are free, or it is no section."""
    section = _section(_type_at(path))
    return list(section.model_fields) if section else []


def section_at(path: Path) -> type[Section] | None:
    """The section at `path`; None if there is none."""
    return _section(_type_at(path))


def meaning(path: Path) -> str:
    """What the key at `path` is for, as its docstring says; empty if nobody knows it."""
    section = _section(_type_at(path[:-1]))
    field = section.model_fields.get(str(path[-1])) if section else None
    return " ".join((field.description or "").split()) if field else ""


def is_secret(path: Path) -> bool:
    """Whether the value at `path`, or anything in it, must not be shown; unknown keys never are."""
    found = _type_at(path)
    return found is None or _carries(found, Mark.SECRET)


def is_file(path: Path) -> bool:
    """Whether the value at `path` names a file."""
    return Mark.FILE in _bare(_type_at(path))[1]


# Types


def _type_at(path: Path) -> Any:
    found: Any = Config
    for step in path:
        inside = _inside(_bare(found)[0])
        found = inside.get(step, inside.get(type(step)))
    return found


def _section(annotation: Any) -> type[Section] | None:
    bare, _ = _bare(annotation)
    return bare if isinstance(bare, type) and issubclass(bare, Section) else None


def _bare(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type without `Annotated` and `| None`, and what it was annotated with."""
    notes: tuple[Any, ...] = ()
    while True:
        arguments = [each for each in get_args(annotation) if each is not types.NoneType]
        if get_origin(annotation) is Annotated:
            annotation, notes = arguments[0], (*notes, *arguments[1:])
        elif get_origin(annotation) in (Union, types.UnionType) and len(arguments) == 1:
            annotation = arguments[0]
        else:
            return annotation, notes


def _inside(bare: Any) -> dict[object, Any]:
    """Types of what is in a section by key; of all that is in a list as `int`, in a mapping as `str`."""
    if section := _section(bare):
        return _hints(section)
    if get_origin(bare) is tuple:
        return {int: get_args(bare)[0]}
    return {str: get_args(bare)[1]} if get_origin(bare) is dict else {}


def _carries(annotation: Any, mark: Mark) -> bool:
    bare, notes = _bare(annotation)
    return mark in notes or any(_carries(each, mark) for each in _inside(bare).values())


@cache
def _hints(section: type[Section]) -> dict[object, Any]:
    hints = get_type_hints(section, include_extras=True)
    return {key: hints[key] for key in section.model_fields}
