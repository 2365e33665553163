"""The documents say what is so: keys, defaults, error codes, commands, snippets and links exist.

Prose cannot be tested; names can. A key is written `section.key` in backticks, with `*` for a
name of the operator's choice and `[]` for an entry of a list.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import click
import pytest
import yaml
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from botproxy import errors
from botproxy.cli import main as cli
from botproxy.config.load import load_file
from botproxy.config.schema import Config, Section

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_KEYS = {
    "botproxy.yaml",
    "bot.example.com",
    "example.com",
    "fullchain.pem",
    "cert.pem",
    "sidecar.yaml",
    "app.start",
    "audit.jsonl",
}
"""Words with a dot that are no keys of the configuration."""
NOT_CODES = {
    "bad_certificate",
    "burst",
    "certificate_expired",
    "last_error_message",
    "lines_lost",
    "no_application_protocol",
    "per_address",
    "secret_token",
    "unknown_ca",
    "unrecognized_name",
}
"""Words with an underscore that are neither keys nor codes of errors."""


def snippets(language: str) -> list[Any]:
    """The blocks in `language` of all documents, as test parameters."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            found.append(pytest.param(match[1], id=f"{path.name}:{line}"))
    assert found
    return found


def prose(path: Path) -> str:
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def words(text: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def rows(path: Path, heading: str) -> Iterator[list[str]]:
    """Cells of every row of the tables whose first line has a cell `heading`, beginning with that cell."""
    at: int | None = None
    for line in prose(path).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            at = None
        elif at is None:
            at = cells.index(heading) if heading in cells else -1
        elif at >= 0 and not set(line) <= set("|- "):
            yield cells[at:]


# Keys


def section(annotation: Any) -> type[Section]:
    """The section in `Section`, `Section | None`, `tuple[Section, ...]` or `dict[str, Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    kinds = [each for each in get_args(annotation) if each not in (NoneType, Ellipsis, str)]
    return section(kinds[-1])


def field(key: str) -> FieldInfo:
    """The field of the schema that `key` names; raises LookupError when there is none."""
    around: type[Section] = Config
    steps = [step for step in key.replace("[]", "").split(".") if step != "*"]
    for step in steps[:-1]:
        try:
            around = section(around.model_fields[step].annotation)
        except IndexError:
            raise LookupError(key) from None
    return around.model_fields[steps[-1]]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_key_that_is_named_exists(path: Path) -> None:
    for word in words(prose(path)):
        if re.fullmatch(r"[a-z_]+(?:\[\])?(?:\.(?:\*|[a-z_]+(?:\[\])?))+", word) and word not in NOT_KEYS:
            field(word)


CODES = {error.code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "code")}
RULES = {
    node.args[0].value
    for path in (ROOT / "botproxy").rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding"
    if node.args and isinstance(node.args[0], ast.Constant)
} | {"turns_self_signed", "turns_staging", "turns_private"}
"""What the judges of certificates call what they find."""


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_word_with_an_underscore_is_a_key_or_a_code(path: Path) -> None:
    for word in words(prose(path)):
        if re.fullmatch(r"[a-z]+(?:_[a-z]+)+", word) and word not in NOT_CODES | CODES | RULES:
            assert word in Config.model_fields


@pytest.mark.parametrize(
    ("key", "default"),
    [
        pytest.param(words(cells[0])[0], cells[1], id=f"{name}:{words(cells[0])[0]}")
        for name in ("behaviour.md", "attacks.md")
        for cells in rows(ROOT / "docs" / name, "setting")
        if cells[0] != "-"
    ],
)
def test_a_setting_has_the_default_that_is_told(key: str, default: str) -> None:
    found = field(key)
    if not default:
        assert found.is_required()
        return
    # A section that is off by default is told as the mapping that changes nothing in it.
    told = TypeAdapter(found.rebuild_annotation()).validate_python(yaml.safe_load(words(default)[0]))
    assert told == found.get_default(call_default_factory=True)


# Errors


KINDS = {errors.ProxyError, errors.ClientError, errors.UpstreamError}
"""Classes that only say whose fault an error is."""


def test_the_table_of_errors_is_complete_and_right() -> None:
    known = {
        error
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.ProxyError) and error not in KINDS
    }
    gone: dict[type[errors.ProxyError], str] = {errors.ClientGone: "499", errors.SlowReader: "-"}
    wanted = {
        (gone.get(error) or str(error.status), f"`{error.code}`", f"`{error.key}`" if error.key else "")
        for error in known
    }
    told = [(cells[0], cells[1], cells[3]) for cells in rows(ROOT / "docs" / "behaviour.md", "status")]
    assert len(told) == len(set(told))
    assert set(told) == wanted


def test_the_keys_that_errors_name_exist() -> None:
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.ProxyError) and error.key is not None:
            field(error.key)


# Snippets


@pytest.mark.parametrize("snippet", snippets("yaml"))
def test_a_yaml_snippet_is_a_whole_configuration(snippet: str, tmp_path: Path) -> None:
    file = tmp_path / "botproxy.yaml"
    file.write_text(snippet)
    load_file(str(file))


@pytest.mark.parametrize("snippet", snippets("python"))
def test_a_python_snippet_is_python(snippet: str) -> None:
    ast.parse(snippet)


@pytest.mark.parametrize("snippet", snippets("js"))
def test_a_node_snippet_is_javascript(snippet: str, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None and not os.environ.get("TESTS_SKIP_NOTHING"):
        pytest.skip("node is not installed")
    assert node, "node is not installed"
    file = tmp_path / "bot.js"
    file.write_text(snippet)
    subprocess.run([node, "--check", file], check=True, capture_output=True, timeout=30)


def commands(text: str) -> Iterator[list[str]]:
    """Command lines, word by word, without `sudo`."""
    for line in text.splitlines():
        for command in line.split(" && "):
            parts = shlex.split(command)
            yield parts[1:] if parts[0] == "sudo" else parts


@pytest.mark.parametrize("snippet", snippets("sh"))
def test_a_command_of_ours_is_understood(snippet: str) -> None:
    for parts in commands(snippet):
        check_command(parts)


def test_commands_named_in_the_text_exist() -> None:
    for path in DOCUMENTS:
        for word in words(prose(path)):
            if word.startswith("botproxy ") and (named := re.match(r"botproxy ([a-z]+)", word)):
                assert named[1] in cli.VERBS
            if named := re.fullmatch(r"make ([a-z]+)", word):
                assert named[1] in targets()


def check_command(parts: list[str]) -> None:
    program = parts[0].rpartition("/")[2]
    if program == "botproxy":
        verb = cli.botproxy.get_command(click.Context(cli.botproxy), parts[1])
        assert verb is not None, parts[1]
        verb.make_context(parts[1], parts[2:])
    elif program == "make":
        assert parts[1] in targets()
    elif program == "python" and parts[1] == "-m":
        assert importlib.util.find_spec(parts[2]) is not None


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


# Links


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(path)):
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        if anchor:
            assert anchor in {
                slug(heading) for heading in re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            }


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
