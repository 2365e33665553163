"""The shape of the package: layers point down, pure code stays pure, modules are small and introduced.

A failure here means that a module moved up the stack or learned to do I/O. Change
the architecture note in `botproxy/__init__.py` first, then this table.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "botproxy"
LAYERS = [  # import only from rows above, or from your own folder
    {"fields"},
    {"errors", "model", "reasons", "config.units", "config.values", "config.kinds", "config.conflicts"}
    | {"config.schema"},
    {"policy", "tls.certificates", "tls.rules", "tls.pem", "tls.lifetime", "tls.guard"},
    {"net"},
    {"config", "tls", "http", "observe"},
    {"control"},
    {"upstream"},
    {"proxy"},
    {"keeper"},
    {"server"},
    {"cli"},
    {"__main__"},
]
PURE = (
    *("errors", "fields", "model", "reasons", "policy", "http.head", "http.body", "net.proxy_protocol"),
    *("config.schema", "config.units", "config.values", "config.kinds", "config.conflicts"),
    *("tls.certificates", "tls.rules", "tls.pem", "tls.hello", "tls.lifetime", "tls.guard"),
    *("keeper.states", "keeper.naming"),
)
FORBIDDEN_IN_PURE = {"asyncio", "socket", "ssl", "threading", "subprocess", "time", "logging"}
MAX_LINES = 500
FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def layer(module: str) -> int:
    exact = [index for index, row in enumerate(LAYERS) if module in row]
    folder = [index for index, row in enumerate(LAYERS) if module.split(".")[0] in row]
    return (exact or folder)[0]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module, "absolute imports only"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_down(path: Path) -> None:
    here = name(path)
    ours = {module.removeprefix("botproxy.") for module in imports(path)} & {name(file) for file in FILES}
    for other in ours - {here}:
        same_folder = "." in here and other.split(".")[0] == here.split(".")[0]
        room = layer(here) - layer(other)
        assert room > 0 or (room == 0 and same_folder), f"{here} must not import {other}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_pure_modules_do_no_io(path: Path) -> None:
    here = name(path)
    if here in PURE or here.split(".")[0] in PURE:
        assert not {module.split(".")[0] for module in imports(path)} & FORBIDDEN_IN_PURE


@pytest.mark.parametrize("path", FILES, ids=name)
def test_modules_are_small_and_introduced(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), "start with a module docstring"


def test_broad_handlers_stand_only_where_they_may() -> None:
    """`except Exception` hides bugs; it stands around one exchange and around one process."""
    found = {
        name(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception"))
    }
    assert found <= {"proxy", "server.supervisor"}
