"""`botproxy demo`, from the first run to Ctrl-C, as somebody meets it who has just installed it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cli.command import PATIENCE, Running, botproxy, serving


def start(state: Path) -> tuple[str, ...]:
    return ("demo", "--listen", "127.0.0.1:0", "--state-dir", str(state))


def printed_curl(demo: Running) -> list[str]:
    """The line to try, as a shell would split it, once everything has been printed."""
    line = demo.read_out(r"^    (curl .*)$")[1]
    demo.read_out("Ctrl-C")
    return shlex.split(line)


@pytest.fixture
def curl() -> None:
    if shutil.which("curl") is None:
        assert "TESTS_SKIP_NOTHING" not in os.environ, "curl is missing"
        pytest.skip("curl is missing")


@pytest.mark.usefixtures("curl")
def test_the_printed_line_works_as_it_stands(tmp_path):
    with serving(*start(tmp_path / "a state directory")) as demo:
        arguments = printed_curl(demo)
        assert re.fullmatch(r"https://localhost:\d+/", arguments[-1])
        done = subprocess.run(
            [*arguments, "--silent", "--show-error", "--data", "hello"],
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        assert (seen["method"], seen["path"], seen["body_bytes"]) == ("POST", "/", 5)
        assert demo.end(signal.SIGINT) == 0


def test_it_tells_how_to_go_on_to_a_real_certificate(tmp_path):
    with serving(*start(tmp_path)) as demo:
        printed_curl(demo)
        assert "certbot certonly" in demo.out
        assert "botproxy serve" in demo.out
        assert demo.end(signal.SIGINT) == 0
        assert demo.err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_its_end_is_the_end_of_everything_it_started(tmp_path, number):
    with serving(*start(tmp_path)) as demo:
        printed_curl(demo)
        processes = demo.processes()
        assert len(processes) == 4  # supervisor, keeper, worker, echo bot
        assert demo.end(number) == 0
        assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]


def test_nothing_survives_when_it_is_killed(tmp_path):
    with serving(*start(tmp_path)) as demo:
        printed_curl(demo)
        # Returns when the last process that inherited its output has ended.
        assert demo.end(signal.SIGKILL) == -signal.SIGKILL


def test_ctrl_c_at_a_terminal_reaches_all_processes_and_still_ends_in_order(tmp_path):
    with serving(*start(tmp_path)) as demo:
        printed_curl(demo)
        os.killpg(demo.process.pid, signal.SIGINT)
        demo.process.wait(PATIENCE)
        assert demo.end(signal.SIGINT) == 0  # The signal finds nobody: this reads what was written.
        assert demo.err == ""


@pytest.mark.usefixtures("curl")
def test_the_second_run_is_trusted_by_who_trusted_the_first(tmp_path):
    with serving(*start(tmp_path)) as demo:
        printed_curl(demo)
        ca = (tmp_path / "development" / "ca.pem").read_bytes()
        assert demo.end(signal.SIGINT) == 0
    with serving(*start(tmp_path)) as demo:
        arguments = printed_curl(demo)
        assert (tmp_path / "development" / "ca.pem").read_bytes() == ca
        assert subprocess.run([*arguments, "-so", "/dev/null"], timeout=PATIENCE, check=False).returncode == 0
        assert demo.end(signal.SIGINT) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_started_as_root_only_supervisor_and_keeper_stay_root(tmp_path):
    with serving(*start(tmp_path)) as demo:
        # Once it answers, the bot has given root up; it reads nothing before.
        subprocess.run([*printed_curl(demo), "-so", "/dev/null"], timeout=PATIENCE, check=True)
        owners = sorted(Path(f"/proc/{pid}").stat().st_uid for pid in demo.processes())
        assert [uid == 0 for uid in owners] == [True, True, False, False]
        assert demo.end(signal.SIGINT) == 0


@pytest.mark.parametrize("shared", [False, True])
def test_a_port_that_is_taken_is_named_with_another_to_choose(tmp_path, shared):
    """Also when its owner would share it (SO_REUSEPORT), as another botproxy would."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = botproxy("demo", "--listen", address, "--state-dir", str(tmp_path))
    assert ended.code == 1
    assert ended.err == (
        f'botproxy: error: "{address}" is taken by another program\n'
        "botproxy: hint: choose another port: botproxy demo --listen 127.0.0.1:9443\n"
    )


@pytest.mark.parametrize("address", ["192.0.2.1:8443", "bot.example.com:8443", "fd:3", "systemd"])
def test_an_address_at_which_localhost_is_not_found_is_refused(tmp_path, address):
    ended = botproxy("demo", "--listen", address, "--state-dir", str(tmp_path))
    assert ended.code == 2
    assert (
        f'option "--listen": expected an address at which localhost is found, found "{address}"' in ended.err
    )


def test_what_is_no_address_is_refused(tmp_path):
    ended = botproxy("demo", "--listen", "8443", "--state-dir", str(tmp_path))
    assert ended.code == 2
    assert ended.err.startswith("botproxy: error: --listen: ")


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    ended = botproxy("demo", "--state-dir", f"{tmp_path}/file/state")
    assert ended.code == 2
    assert f"{tmp_path}/file/state" in ended.err


def test_a_development_directory_that_cannot_be_used_is_named(tmp_path):
    tmp_path.chmod(0o700)
    (tmp_path / "development").touch()
    ended = botproxy("demo", "--state-dir", str(tmp_path))
    assert ended.code == 1
    assert f'botproxy: error: "{tmp_path}/development": ' in ended.err
    assert "--state-dir" in ended.err
