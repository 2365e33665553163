"""YAML files: read strictly, bounded, and with errors that say where and do not quote the file."""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from botproxy.config.document import DEEPEST, LARGEST, MOST, read_document
from botproxy.config.explain import Place, Report
from botproxy.errors import ConfigError, Problem


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.yaml"


def read(file: Path, content: str | bytes) -> Any:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    report = Report(Place("x", 1, file.parent))
    data = read_document(str(file), file.parent, report)
    report.finish()
    return data


def problem_of(file: Path, content: str | bytes) -> Problem:
    with pytest.raises(ConfigError) as caught:
        read(file, content)
    (problem,) = caught.value.problems
    return Problem(problem.where.replace(str(file), "x"), problem.path, problem.says, problem.hint)


def test_values_are_plain(file: Path) -> None:
    text = """
    a: [1, -2, 1.5, text, "1", 'x', null, ~, true, off, Yes]
    b: {c: , d: {}}
    """
    assert read(file, text) == {
        "a": [1, -2, 1.5, "text", "1", "x", None, None, True, False, True],
        "b": {"c": None, "d": {}},
    }


@pytest.mark.parametrize(
    "written",
    ["1:30", "8000:80", "010", "0x10", "0b1", "1_000", "1e3", ".inf", "1.", "2024-01-01", "9" * 5000],
)
def test_numbers_that_yaml_would_reinterpret_are_text(file: Path, written: str) -> None:
    assert read(file, f"a: {written}") == {"a": written}


def test_every_value_has_its_line(file: Path) -> None:
    file.write_text("a: 1\n\nb:\n  - x\n  -\n    c: d\n")
    report = Report(Place("x", 1, file.parent))
    read_document(str(file), file.parent, report)
    lines = {path: place.line for path, place in report.places.items()}
    assert lines == {(): 1, ("a",): 1, ("b",): 3, ("b", 0): 4, ("b", 1): 6, ("b", 1, "c"): 6}


@pytest.mark.parametrize(
    ("content", "where", "path", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "x:3", "a", "expected each key once, found it again (first on line 1)"),
        ("b:\n  a: 1\n  a: 1\n", "x:3", "b.a", "expected each key once, found it again (first on line 2)"),
        ("\n443: x", "x:2", "", "expected a key that is text, found 443"),
        ("b: {on: x}", "x:1", "b", "expected a key that is text, found on"),
        ("~: x", "x:1", "", "expected a key that is text, found ~"),
        ("? [a]\n: x", "x:1", "", "expected a key that is text, found a list as a key"),
        ("? {a: b}\n: x", "x:1", "", "expected a key that is text, found a mapping as a key"),
        ("a: &x 1\nb: *x", "x:2", "b", "expected the value itself, found an alias"),
        ("a: *hunter2", "x:1", "a", "expected the value itself, found an alias"),
        ("a: &x [*x]", "x:1", "a[0]", "expected the value itself, found an alias"),
        ("? &x a\n: 1\n? *x\n: 2", "x:3", "", "expected a key that is text, found an alias"),
        ("a: {<<: {b: c}}", "x:1", "a", "expected keys written out, found a merge key (<<)"),
        ("a: !!python/object/apply:os.system [x]", "x:1", "a", "expected plain YAML, found a tag"),
        ("a: !env TOKEN", "x:1", "a", "expected plain YAML, found a tag"),
        ("a: !!binary aGk=", "x:1", "a", "expected plain YAML, found a tag"),
        ("a: !!set {b}", "x:1", "a", "expected plain YAML, found a tag"),
        ('a: "\\uD800"', "x:1", "a", "expected text, found half a character (\\uD800 to \\uDFFF)"),
    ],
)
def test_what_means_more_than_it_shows_is_refused(
    file: Path, content: str, where: str, path: str, says: str
) -> None:
    problem = problem_of(file, content)
    assert (problem.where, problem.path, problem.says) == (where, path, says)


@pytest.mark.parametrize(
    ("content", "where", "found"),
    [
        ("a: b: hunter2", "x:1:5", 'a ":" too many'),
        ("a:\n\tb: 1", "x:2:1", "a tab"),
        ("a: @hunter2", "x:1:4", "a character that means something to YAML"),
        ("a: %hunter2", "x:1:4", "a character that means something to YAML"),
        ("a: 1\nhunter2\nb: 1\n", "x:2:1", 'a line without ":"'),
        ('a: 1\nb: "hunter2', "x:2:4", "a quote that is never closed"),
        ("a: 1\nb: [hunter2\n", "x:2:4", "a [ or { that is never closed, or a missing comma"),
        ("a:\n    b: 1\n  hunter2: 1\n", "x:3:3", "a line whose indentation fits nothing above it"),
        ("a: 1\n---\nhunter2: 1\n", "x:2:1", "a second document"),
        ("a: 1\n... hunter2", "x:2:5", "something else"),
        ('a: "\\UFFFFFFFF"', "x", "an escape that stands for no character"),
    ],
)
def test_broken_yaml_is_told_with_line_and_column_and_without_quoting_it(
    file: Path, content: str, where: str, found: str
) -> None:
    problem = problem_of(file, content)
    assert (problem.where, problem.says) == (where, f"expected valid YAML, found {found}")
    assert "hunter2" not in repr(problem)


@pytest.mark.parametrize(
    ("content", "where", "says"),
    [
        ("", "x", "expected a configuration, found an empty file"),
        ("# nothing but a comment\n", "x", "expected a configuration, found an empty file"),
        ("\n- a", "x:2", 'expected a mapping of keys like "certificates:", found a list'),
        ("hunter2", "x:1", 'expected a mapping of keys like "certificates:", found a single value'),
        ("!x {a: b}", "x:1", 'expected a mapping of keys like "certificates:", found a mapping with a tag'),
        (b"a: 1\nb: \xe9", "x:2", "expected UTF-8, found the byte 0xe9"),
        ("a: 1".encode("utf-16"), "x:1", "expected UTF-8, found the byte 0xff"),
        ("a: 1\nb: \x1b[0m", "x:2", "expected text, found the control character U+001B"),
        ("a: \0", "x:1", "expected text, found the control character U+0000"),
        (b"a: " + b"x" * LARGEST, "x", "expected at most 1MiB, found more"),
    ],
)
def test_a_file_that_is_no_configuration_says_why(
    file: Path, content: str | bytes, where: str, says: str
) -> None:
    problem = problem_of(file, content)
    assert (problem.where, problem.says) == (where, says)


def test_a_byte_order_mark_is_no_part_of_the_file(file: Path) -> None:
    assert read(file, "a: 1".encode("utf-8-sig")) == {"a": 1}


def test_a_missing_file_a_directory_and_a_broken_link_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    says = {}
    for name in (".", "missing", "loop"):
        with pytest.raises(ConfigError) as caught:
            read_document(str(tmp_path / name), tmp_path, Report(Place("x", 1, tmp_path)))
        says[name] = caught.value.problems[0].says
    assert says == {
        ".": "expected a file, found a directory",
        "missing": "expected a file, found none",
        "loop": "expected a file that can be read, found an error: Too many levels of symbolic links",
    }


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with ThreadPoolExecutor() as elsewhere:
        elsewhere.submit(path.write_text, "a: 1")
        assert read_document(str(path), tmp_path, Report(Place("x", 1, tmp_path))) == {"a": 1}


def test_a_pipe_into_which_nobody_writes_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="found a pipe without an end"):
        read_document(str(path), tmp_path, Report(Place("x", 1, tmp_path)))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("[" * 100_000, f"more than {DEEPEST} levels"),
        ("a: " + "{a: " * 1000, f"more than {DEEPEST} levels"),
        ("\n".join(" " * depth + "a:" for depth in range(200)), f"more than {DEEPEST} levels"),
        ("a: [" + "1," * MOST + "]", f"more than {MOST} values"),
    ],
)
def test_structure_is_bounded(file: Path, content: str, found: str) -> None:
    assert problem_of(file, content).says == f"expected valid YAML, found {found}"


def test_a_bomb_of_aliases_costs_nothing(file: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 15)]
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read(file, "\n".join(lines))
    assert len(caught.value.problems) == 14 * 9
    assert time.process_time() - started < 2


@settings(max_examples=300)
@given(
    st.one_of(st.binary(max_size=60), st.text(alphabet="ab:-[]{}\"'#&*!|>%@`,?~<\\\n\t xUu0", max_size=40))
)
def test_any_bytes_are_read_or_refused_in_words(content: bytes | str) -> None:
    with tempfile.TemporaryDirectory() as directory, suppress(ConfigError):
        assert isinstance(read(Path(directory) / "x", content), dict)
