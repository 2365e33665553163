"""Reads the configuration: a YAML file, variables over it, options over both, or any of them alone.

Lays the sources over each other, remembers which one each value came from,
makes file names absolute and has the schema judge the result. All mistakes of
one run are raised together as ConfigError. Opens no file but the configuration:
whether the files it names exist is found out by those who need them.

YAML: `document`. Variables: `environment`. Rules: `schema`. Wording: `explain`. After: `cli.serve`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path as Directory
from types import MappingProxyType
from typing import Any, Final, get_type_hints

from pydantic import TypeAdapter, ValidationError

from botproxy.config.document import read_document, read_value
from botproxy.config.environment import variables
from botproxy.config.explain import Place, Report
from botproxy.config.keys import dotted, is_file
from botproxy.config.schema import Certificate, Config, Upstream, contradictions_in
from botproxy.config.units import Fault, Path
from botproxy.errors import Problem

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Draft:
    """A configuration that may be wrong in places, for those who want to say everything at once."""

    config: Config
    """What is right in it, and defaults; never to be served while there are `problems`."""
    positions: tuple[int, ...]
    """For each of its certificates the index that it has in the file."""
    complete: bool
    """Whether these are all certificates of the file."""
    problems: tuple[Problem, ...]
    where: Callable[[Path], str]
    """`file:line` of a key."""


def load_file(
    path: str,
    overrides: Mapping[str, Any] = _NONE,
    origins: Mapping[str, str] = _NONE,
    environment: Mapping[str, str] = _NONE,
) -> Config:
    """The configuration in the file at `path`, under `environment` and `overrides` of the same structure.

    Mappings are merged key by key, everything else is replaced. `origins` names
    the option behind a value by its dotted path ({"upstreams.bot.url": "--to"}),
    for errors. File names are relative to the directory of the file, those of
    variables and options to the current one. Raises ConfigError with everything wrong.
    """
    data, report = _read(path, environment)
    _lay_over(data, overrides, (), origins, report)
    return _finished(data, report)


def draft(path: str | None, environment: Mapping[str, str] = _NONE) -> Draft:
    """What is in the file at `path` and in `environment`, right or wrong; None: no file.

    Raises ConfigError where nothing can be read at all.
    """
    if path is None:
        data, report = _without_file(_NONE, environment)
    else:
        data, report = _read(path, environment)
    complete = _validate(data, report)
    if complete is not None:
        positions = tuple(range(len(complete.certificates)))
        return Draft(complete, positions, True, (), report.where)
    positions, config = _usable(data)
    written = data.get("certificates")
    whole = isinstance(written, list) and len(written) == len(positions)
    return Draft(config, positions, whole, tuple(report.problems()), report.where)


def load_options(
    values: Mapping[str, Any],
    origins: Mapping[str, str] = _NONE,
    environment: Mapping[str, str] = _NONE,
) -> Config:
    """The configuration in `environment` and `values` alone; see `load_file` for `origins`."""
    data, report = _without_file(origins, environment)
    _lay_over(data, values, (), origins, report)
    return _finished(data, report)


# Private


def _read(path: str, environment: Mapping[str, str]) -> tuple[dict[str, Any], Report]:
    directory = Directory.cwd() / Directory(path).parent
    report = Report(Place(f"{path}:1", 1, directory))
    data = read_document(path, directory, report)
    _lay_environment(data, environment, report)
    return data, report


def _without_file(
    origins: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[dict[str, Any], Report]:
    report = Report(_option((), origins))
    data: dict[str, Any] = {}
    _lay_environment(data, environment, report)
    return data, report


def _finished(data: dict[str, Any], report: Report) -> Config:
    config = _validate(data, report)
    report.finish()
    assert config is not None
    return config


def _validate(data: dict[str, Any], report: Report) -> Config | None:
    """The configuration; None if `report` has problems."""
    _resolve_file_names(data, report)
    config: Config | None = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        report.explain(error)
        report.contradict(contradictions_in(data))
    return None if report.problems() else config


def _usable(data: Mapping[str, Any]) -> tuple[tuple[int, ...], Config]:
    """The keys that are right alone, and where in the file its certificates stand."""
    entries = data.get("certificates")
    entries = entries if isinstance(entries, list) else []
    certificates = {index: _right(Certificate, entry) for index, entry in enumerate(entries)}
    bots = data.get("upstreams")
    upstreams = {
        name: _right(Upstream, bot) for name, bot in (bots if isinstance(bots, dict) else {}).items()
    }
    kinds = get_type_hints(Config, include_extras=True)
    values = {
        key: _right(kinds[key], data[key])
        for key in Config.model_fields
        if key in data and key not in ("certificates", "upstreams")
    }
    right = {key: value for key, value in values.items() if value is not None}
    return tuple(index for index, each in certificates.items() if each), Config.model_construct(
        **right,
        certificates=tuple(each for each in certificates.values() if each),
        upstreams={name: each for name, each in upstreams.items() if each},
    )


def _right(kind: Any, value: object) -> Any:
    """`value` as the schema has it; None if it is wrong."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return None


def _resolve_file_names(data: dict[str, Any], report: Report) -> None:
    for path, place in report.places.items():
        if path and is_file(path):
            around: Any = data
            for step in path[:-1]:
                around = around[step]
            if isinstance(around[path[-1]], str) and around[path[-1]]:
                around[path[-1]] = str(place.directory / around[path[-1]])


# Environment


def _lay_environment(data: dict[str, Any], environment: Mapping[str, str], report: Report) -> None:
    for variable in variables(environment):
        place = Place(variable.name, sys.maxsize, Directory.cwd())
        if not variable.path:
            report.add((), _misnamed(variable.name), place=place)
        around: Any = data
        for depth, step in enumerate(variable.path):
            here = variable.path[: depth + 1]
            if isinstance(around, list) and not (isinstance(step, int) and step <= len(around)):
                expected = f"a number from 0 to {len(around)}" if around else "0"
                hint = "entries of a list are numbered from 0, without gaps"
                fault = Fault(f"{expected}, for an entry of a list", f'"{step}"', hint)
                if report.places.get(variable.path[:depth]) == place:
                    report.add_unread(variable.path[:depth], fault)  # an empty list is no fault besides
                else:
                    report.add(variable.path[:depth], fault, place=place)
                break
            step = step if isinstance(around, list) else str(step)
            known = around[step] if isinstance(around, dict) and step in around else None
            if isinstance(around, list) and isinstance(step, int) and step < len(around):
                known = around[step]
            if here == variable.path:
                _forget(report, here)
                value = read_value(variable.name, variable.text, here, Directory.cwd(), report)
            elif isinstance(known, dict | list):
                around = known
                continue
            else:
                value = [] if isinstance(variable.path[depth + 1], int) else {}
                report.places[here] = place
            if isinstance(around, list) and step == len(around):
                around.append(value)
            else:
                around[step] = value
            around = value


def _misnamed(name: str) -> Fault:
    upper = name.upper()
    known = variables({upper: ""})
    hint = f"write {upper}" if known and known[0].path else "two underscores are between two levels, only"
    return Fault("a name like BOTPROXY_TIMEOUTS__DRAIN", "another one", hint)


# Options


def _lay_over(
    data: dict[str, Any], values: Mapping[str, Any], path: Path, origins: Mapping[str, str], report: Report
) -> None:
    """Puts `values` into `data`, whose path is `path`."""
    for key, value in values.items():
        here = (*path, key)
        below = data.get(key)
        if isinstance(value, Mapping) and isinstance(below, dict):
            _lay_over(below, value, here, origins, report)
        else:
            _forget(report, here)
            data[key] = _plain(value, here, origins, report)


def _forget(report: Report, path: Path) -> None:
    """Whatever was written at `path` is replaced."""
    for gone in [each for each in report.places if each[: len(path)] == path]:
        del report.places[gone]


def _plain(value: Any, path: Path, origins: Mapping[str, str], report: Report) -> Any:
    """`value` in lists and dicts of our own, with a place for everything in it."""
    report.places[path] = _option(path, origins)
    if isinstance(value, Mapping):
        return {key: _plain(each, (*path, key), origins, report) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, (*path, index), origins, report) for index, each in enumerate(value)]
    return value


def _option(path: Path, origins: Mapping[str, str]) -> Place:
    around = (dotted(path[:length]) for length in range(len(path), 0, -1))
    where = next((origins[each] for each in around if each in origins), "command line")
    return Place(where, sys.maxsize, Directory.cwd())
