"""Where state lies, and which directories are refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from botproxy.config.state import Placement, admin_socket, make_state_dir, state_dir
from botproxy.errors import ConfigError


@pytest.fixture
def unprivileged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_the_configured_directory_wins(tmp_path: Path):
    assert state_dir(Placement(state_dir=str(tmp_path))) == tmp_path


def test_root_keeps_state_in_var_lib(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    assert state_dir(Placement()) == Path("/var/lib/botproxy")


@pytest.mark.usefixtures("unprivileged")
@pytest.mark.parametrize(
    ("xdg", "expected"),
    [
        ("/var/state", "/var/state/botproxy"),
        ("", "/home/bot/.local/state/botproxy"),
        ("relative", "/home/bot/.local/state/botproxy"),
    ],
)
def test_others_keep_it_below_their_home(monkeypatch: pytest.MonkeyPatch, xdg: str, expected: str):
    monkeypatch.setenv("HOME", "/home/bot")
    monkeypatch.setenv("XDG_STATE_HOME", xdg)
    assert state_dir(Placement()) == Path(expected)


def test_the_directory_is_made_for_its_owner_alone(tmp_path: Path):
    made = make_state_dir(Placement(state_dir=str(tmp_path / "a" / "b")))
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert make_state_dir(Placement(state_dir=str(made))) == made


def test_a_directory_that_others_can_write_to_is_refused_with_the_command(tmp_path: Path):
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError) as caught:
        make_state_dir(Placement(state_dir=str(tmp_path)))
    [problem] = caught.value.problems
    assert problem.path == "state_dir"
    assert "drwxrwxrwx" in problem.says
    assert f"chmod 700 {tmp_path}" in (problem.hint or "")


def test_a_file_in_the_way_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        make_state_dir(Placement(state_dir=str(tmp_path / "file" / "state")))


def test_the_admin_socket_lies_in_the_state_directory_unless_told_otherwise():
    assert admin_socket(Placement(state_dir="/s")) == Path("/s/admin.sock")
    assert admin_socket(Placement(state_dir="/s", admin="unix:/run/b.sock")) == Path("/run/b.sock")
    assert admin_socket(Placement(state_dir="/s", admin="off")) is None
