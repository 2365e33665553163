"""A YAML file as plain values, with the line of each.

The only place that knows YAML. Reads strictly, so that nothing means more than
it shows and a small file stays small: no tags, aliases or merge keys, each key
once and text, numbers in decimal only (YAML 1.1 would read `1:30` as 90 and
`010` as 8; here both are text). What the YAML library says about an error is
never passed on, because it quotes the file.

After: `load`, which has the schema judge the values.
"""

from __future__ import annotations

import os
import re
import select
import sys
import time
from dataclasses import replace
from pathlib import Path as Directory
from typing import Any, Final

import yaml

from botproxy.config.explain import Place, Report
from botproxy.config.keys import name
from botproxy.config.units import Fault, Path
from botproxy.errors import ConfigError, Problem

LARGEST: Final = 1024 * 1024
"""Bytes of a file."""
DEEPEST: Final = 20
"""Levels of lists and mappings; the schema has five."""
PIPE_PATIENCE: Final = 2.0
"""Seconds in which a pipe instead of a file must have said everything."""
MOST: Final = 10_000
"""Keys and values in a file."""


def read_document(path: str, directory: Directory, report: Report) -> dict[str, Any]:
    """The mapping in the file at `path`; places and mistakes go to `report`.

    Raises ConfigError where nothing can be read at all; `directory` is what
    relative file names in it are relative to.
    """
    root = _compose(path, _text(path))
    reader = _Reader(path, directory, report)
    if not isinstance(root, yaml.MappingNode) or root.tag != f"{_TAG}map":
        where = f"{path}:{root.start_mark.line + 1}"
        raise _unusable(
            where, f'expected a mapping of keys like "certificates:", found {_kind(root)}', "write key: value"
        )
    return reader.mapping(root, ())


def read_value(name: str, text: str, path: Path, directory: Directory, report: Report) -> Any:
    """The value in `text`, which somebody calls `name`, for the key at `path`.

    Places and mistakes go to `report`, as with `read_document`.
    """
    if not text.strip():
        text = '""'
    place = Place(name, sys.maxsize, directory, text)
    report.places[path] = place
    try:
        root = _compose(name, text)
    except ConfigError as error:
        says = error.problems[0].says.partition("found ")[2]
        report.add_unread(path, Fault("a value as in the file", says, error.problems[0].hint))
        return None
    return _Reader(name, directory, report, place).value(root, path, place)


# The file


def _text(path: str) -> str:
    try:
        content = _content(path)
    except FileNotFoundError:
        raise _unusable(
            path,
            "expected a file, found none",
            "check the name; relative ones begin at the current directory",
        ) from None
    except IsADirectoryError:
        raise _unusable(path, "expected a file, found a directory", "name the file in it") from None
    except PermissionError:
        says = "expected a file that may be read, found one that may not"
        raise _unusable(path, says, "start botproxy as the owner of the file, or chmod it") from None
    except OSError as error:
        says = f"expected a file that can be read, found an error: {error.strerror}"
        raise _unusable(path, says, "see that cat can read it") from None
    if len(content) > LARGEST:
        raise _unusable(path, "expected at most 1MiB, found more", "is this a configuration file?")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        says = f"expected UTF-8, found the byte 0x{content[error.start]:02x}"
        raise _unusable(f"{path}:{line}", says, "save the file as UTF-8") from None


def _content(path: str) -> bytes:
    """At most one byte more than the largest. A pipe is read too, but not waited for: somebody serves."""
    content = b""
    ends = time.monotonic() + PIPE_PATIENCE
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        arrives = select.poll()
        arrives.register(file, select.POLLIN)
        while len(content) <= LARGEST:
            if not arrives.poll(max(0.0, ends - time.monotonic()) * 1000):
                says = f"expected a file, found a pipe without an end after {PIPE_PATIENCE:g} s"
                raise _unusable(path, says, "write into a file, and name that")
            more = file.read(LARGEST + 1 - len(content))
            if not more:
                break
            content += more
    return content


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _unusable(where: str, says: str, hint: str) -> ConfigError:
    return ConfigError([Problem(where, "", says, hint)])


# YAML


class _Composer(yaml.SafeLoader):
    """Nodes with their lines; bounded, and with aliases left as they are, so that none can multiply."""

    _depth = 0
    _count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        events: Any = self  # the stubs leave its methods untyped
        event = events.peek_event()
        start: Any = event.start_mark
        self._count += 1
        if self._count > MOST:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST} values", problem_mark=start)
        if self._depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"more than {DEEPEST} levels", problem_mark=start)
        if isinstance(event, yaml.AliasEvent):
            events.get_event()
            return yaml.ScalarNode(_ALIAS, "", start, start)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _compose(path: str, text: str) -> yaml.Node:
    try:
        root = yaml.compose(text, Loader=_Composer)
    except yaml.reader.ReaderError as error:
        where = f"{path}:{text.count(chr(10), 0, error.position) + 1}"
        says = f"expected text, found the control character U+{ord(text[error.position]):04X}"
        raise _unusable(where, says, "remove it; is this a text file?") from None
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(path, error) from None
    except (ValueError, OverflowError):  # the library passes on what chr() says about "\UFFFFFFFF"
        says = "expected valid YAML, found an escape that stands for no character"
        raise _unusable(path, says, 'write \\\\ for a backslash in "", or use single quotes') from None
    if root is None:
        says = "expected a configuration, found an empty file"
        raise _unusable(path, says, "it needs `certificates` at least")
    return root


_SYNTAX: Final = (
    ("more than", None, "is this a configuration file?"),
    ("'\\t' that cannot start", "a tab", "indent with spaces"),
    ("that cannot start any token", "a character that means something to YAML", "put the value in quotes"),
    ("mapping values are not allowed", 'a ":" too many', 'put values with ": " in quotes; check indentation'),
    ("could not find expected ':'", 'a line without ":"', 'write "key: value"'),
    ("unexpected end of stream", "a quote that is never closed", "close it on the same line"),
    ("but found another document", "a second document", "leave out the line with ---"),
    ("<block end>", "a line whose indentation fits nothing above it", "indent keys of one mapping alike"),
    (
        "expected ',' or",
        "a [ or { that is never closed, or a missing comma",
        "close it, and separate entries with commas",
    ),
    ("", "something else", "look at the line above, too"),
)
"""A fragment of what the library says (or `_Composer`, whose words may be told), what was found, a hint."""


def _not_yaml(path: str, error: yaml.MarkedYAMLError) -> ConfigError:
    said = error.problem or ""
    found, hint = next((found, hint) for fragment, found, hint in _SYNTAX if fragment in said)
    # Where a quote, a bracket or a key began says more than where the scanner gave up on it.
    begun = any(part in said for part in ("expected ':'", "end of stream", "expected ',' or"))
    mark = (error.context_mark if begun else None) or error.problem_mark or error.context_mark
    where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
    return _unusable(where, f"expected valid YAML, found {found or said}", hint)


# Values


_TAG = "tag:yaml.org,2002:"
_TEXT = {f"{_TAG}{kind}" for kind in ("str", "int", "float", "timestamp", "value", "merge")}
_ALIAS = "alias"
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,18}")


class _Reader:
    """Nodes to plain values."""

    def __init__(
        self, file: str, directory: Directory, report: Report, everywhere: Place | None = None
    ) -> None:
        """`everywhere`: the place of all that is read, where lines mean nothing."""
        self._file = file
        self._directory = directory
        self._report = report
        self._everywhere = everywhere

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        """The keys and values of `node`, which stands at `path`."""
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            place = self._place(key_node)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_TAG}str":
                self._report.add(path, _no_key(key_node), place=place)
                continue
            key = key_node.value
            if key in values:
                found = f"it again (first on line {lines[key]})"
                fault = Fault("each key once", found, "remove one of the two")
                self._report.add((*path, key), fault, place=place)
                continue
            lines[key] = place.line
            values[key] = self.value(value_node, (*path, key), place)
        return values

    def value(self, node: yaml.Node, path: Path, place: Place) -> Any:
        """What `node` holds, which stands at `path` and was written at `place`."""
        self._report.places[path] = place
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [
                self.value(each, (*path, index), self._place(each)) for index, each in enumerate(node.value)
            ]
        if not isinstance(node, yaml.ScalarNode):
            return self._refused(path, Fault("plain YAML", "a tag", "leave out what begins with !"))
        value = _scalar(node)
        if not isinstance(value, str):
            self._report.places[path] = self._place(node, node.value)
        return self._refused(path, value) if isinstance(value, Fault) else value

    def _refused(self, path: Path, fault: Fault) -> None:
        self._report.add_unread(path, fault)

    def _place(self, node: yaml.Node, written: str | None = None) -> Place:
        if self._everywhere is not None:
            return replace(self._everywhere, written=written)
        line = node.start_mark.line + 1
        return Place(f"{self._file}:{line}", line, self._directory, written)


def _scalar(node: yaml.ScalarNode) -> str | int | float | bool | Fault | None:
    text: str = node.value
    if node.tag == _ALIAS:
        return Fault("the value itself", "an alias", "write the value out where the * stands")
    if node.tag == f"{_TAG}null":
        return None
    if node.tag == f"{_TAG}bool" and text.lower() in yaml.SafeLoader.bool_values:
        return yaml.SafeLoader.bool_values[text.lower()]
    if node.tag == f"{_TAG}int" and _INTEGER.fullmatch(text):
        return int(text)
    if node.tag == f"{_TAG}float" and _DECIMAL.fullmatch(text):
        return float(text)
    if node.tag not in _TEXT:
        return Fault("plain YAML", "a tag", "leave out what begins with !")
    if any("\ud800" <= character <= "\udfff" for character in text):
        return Fault("text", "half a character (\\uD800 to \\uDFFF)", "write the character itself")
    return text


def _no_key(node: yaml.Node) -> Fault:
    if not isinstance(node, yaml.ScalarNode):
        return Fault("a key that is text", f"{_kind(node)} as a key", "write key: value")
    if node.tag == f"{_TAG}merge":
        return Fault("keys written out", "a merge key (<<)", "write the keys out here")
    if node.tag == _ALIAS:
        return Fault("a key that is text", "an alias", "write the key out where the * stands")
    return Fault(
        "a key that is text", name(node.value) or "nothing", f'write it in quotes: "{name(node.value)}"'
    )


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping" if node.tag == f"{_TAG}map" else "a mapping with a tag"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
