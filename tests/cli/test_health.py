"""`botproxy health` against admin sockets that answer well, badly, slowly and not at all."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from botproxy.cli.ask import NoAnswerError, ask
from tests.cli.command import PATIENCE, botproxy
from tests.cli.scripted import admin, response

READY = {
    "ready": True,
    "degraded": [],
    "workers": [{"slot": 0, "pid": 4711, "set": "5c2b"}, {"slot": 1, "pid": 4712, "set": None}],
    "certificates": [],
}


def test_ready_is_exit_code_0_and_one_word(tmp_path):
    with admin(tmp_path / "admin.sock", response(200, READY)) as asked:
        ended = botproxy("health", "--admin", f"unix:{tmp_path}/admin.sock")
    assert (ended.code, ended.out, ended.err) == (0, "ready\n", "")
    assert b"".join(asked).startswith(b"GET /-/ready HTTP/1.0\r\nHost: localhost\r\n")


def test_not_ready_is_exit_code_1(tmp_path):
    with admin(tmp_path / "admin.sock", response(503, READY | {"ready": False})):
        ended = botproxy("health", "--admin", f"unix:{tmp_path}/admin.sock")
    assert (ended.code, ended.out) == (
        1,
        "not ready: 1 of 2 workers have their certificates\n",
    )


def test_degraded_is_healthy_and_says_why(tmp_path):
    why = [
        "a: the files are refused (expired): it\x1b has",
        "b: the certificate that is served is renewal late",
    ]
    with admin(tmp_path / "admin.sock", response(200, READY | {"degraded": why})):
        ended = botproxy("health", "--admin", f"unix:{tmp_path}/admin.sock")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"ready, degraded: {'; '.join(why)}\n".replace("\x1b", "\\x1b")


def test_not_ready_is_said_whatever_is_known_of_workers(tmp_path):
    with admin(tmp_path / "admin.sock", response(503, {"ready": False, "workers": [None, 3]})):
        ended = botproxy("health", "--admin", f"unix:{tmp_path}/admin.sock")
    assert (ended.code, ended.out) == (1, "not ready: 0 of 2 workers have their certificates\n")


def test_json_is_the_whole_answer(tmp_path):
    with admin(tmp_path / "admin.sock", response(200, READY)):
        ended = botproxy("health", "--admin", f"unix:{tmp_path}/admin.sock", "--json")
    assert (ended.code, json.loads(ended.out)) == (0, READY)


def test_an_absent_socket_is_named_with_a_hint(tmp_path):
    ended = botproxy("health", "--admin", f"unix:{tmp_path}/absent.sock")
    assert (ended.code, ended.out) == (1, "")
    error, hint = ended.err.splitlines()
    assert error == f'botproxy: error: "{tmp_path}/absent.sock": no such file or directory'
    assert hint.startswith("botproxy: hint: ")


def test_an_absent_socket_is_not_ready_in_json_too(tmp_path):
    ended = botproxy("health", "--admin", f"unix:{tmp_path}/absent.sock", "--json")
    assert ended.code == 1
    assert json.loads(ended.out)["ready"] is False


def test_a_socket_that_nobody_serves_any_more_is_not_ready(tmp_path):
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "admin.sock"))
    ended = botproxy("health", "--admin", f"unix:{tmp_path}/admin.sock")
    assert ended.code == 1
    assert "connection refused" in ended.err


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n<html>",
        response(200, ["ready"]),
        response(200, {"ready": "yes"}),
        response(200, {}),
    ],
)
def test_an_answer_that_is_not_ours_is_not_ready(tmp_path, answer):
    with admin(tmp_path / "admin.sock", answer):
        ended = botproxy("health", "--admin", f"unix:{tmp_path}/admin.sock")
    assert ended.code == 1
    assert "expected the answer of botproxy" in ended.err


def test_an_answer_without_end_is_given_up(tmp_path):
    def endless(connection: socket.socket) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                connection.sendall(b"x" * 65536)

    with admin(tmp_path / "admin.sock", endless):
        ended = botproxy("health", "--admin", f"unix:{tmp_path}/admin.sock")
    assert ended.code == 1


def test_the_deadline_counts_from_the_question_not_from_the_last_byte(tmp_path):
    gone = threading.Event()

    def drip(connection: socket.socket) -> None:
        with contextlib.suppress(BrokenPipeError):  # whoever asked has given up
            while not gone.wait(0.02):
                connection.send(b"H")

    with admin(tmp_path / "admin.sock", drip):
        began = time.monotonic()
        with pytest.raises(NoAnswerError, match=r"no answer within 0\.2 s"):
            ask(None, f"unix:{tmp_path}/admin.sock", "/-/ready", deadline=0.2)
        took = time.monotonic() - began
        gone.set()
    assert 0.2 <= took < 2


def test_without_options_the_socket_of_the_account_is_asked(tmp_path):
    ended = botproxy("health", env={"XDG_STATE_HOME": str(tmp_path)})
    assert ended.code == 1
    expected = "/var/lib/botproxy" if os.geteuid() == 0 else f"{tmp_path}/botproxy"
    assert f'"{expected}/admin.sock"' in ended.err


def test_the_socket_can_be_found_through_the_configuration(tmp_path):
    file = tmp_path / "botproxy.yaml"
    file.write_text(f"certificates: [{{chain: c.pem, key: k.pem}}]\nstate_dir: {tmp_path}\n")
    with admin(tmp_path / "admin.sock", response(200, READY)):
        ended = botproxy("health", "--config", str(file))
    assert (ended.code, ended.out) == (0, "ready\n")


@pytest.mark.parametrize("named", ["option", "variable"])
def test_a_mistake_in_the_file_is_no_reason_not_to_ask_who_serves_with_the_one_before(tmp_path, named):
    file = tmp_path / "botproxy.yaml"
    file.write_text(f"certificates: [{{chain: c.pem, key: k.pem}}]\nstate_dir: {tmp_path}\nwrkers: 3\n")
    with admin(tmp_path / "admin.sock", response(200, READY)):
        if named == "option":
            ended = botproxy("health", "--config", str(file))
        else:
            ended = botproxy("health", env={"BOTPROXY_CONFIG": str(file)})
    assert (ended.code, ended.out) == (0, "ready\n")


def test_a_file_that_cannot_be_read_leaves_the_variables(tmp_path):
    file = tmp_path / "botproxy.yaml"
    file.write_text("certificates: [")
    variables = {"BOTPROXY_CONFIG": str(file), "BOTPROXY_STATE_DIR": str(tmp_path)}
    with admin(tmp_path / "admin.sock", response(200, READY)):
        ended = botproxy("health", env=variables)
    assert (ended.code, ended.out) == (0, "ready\n")
    assert botproxy("health", "--config", str(file), env=variables).code == 2


def test_a_configuration_without_admin_socket_is_said_to_have_none(tmp_path):
    file = tmp_path / "botproxy.yaml"
    file.write_text("certificates: [{chain: c.pem, key: k.pem}]\nadmin: off\n")
    ended = botproxy("health", "--config", str(file))
    assert ended.code == 1
    assert 'admin: expected a socket to ask, found "off"' in ended.err


def test_asking_the_default_socket_loads_no_configuration():
    program = (
        "import sys\nfrom botproxy.cli.main import main\nmain(['health'])\n"
        "sys.exit('pydantic' in sys.modules or 'asyncio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("value", ["/run/admin.sock", "unix:", "unix:relative.sock", "127.0.0.1:9443"])
def test_an_admin_socket_that_is_no_path_is_a_usage_error(value):
    ended = botproxy("health", "--admin", value)
    assert ended.code == 2
    assert ended.err.startswith('botproxy: error: option "--admin": expected "unix:/path/to.sock"')


def test_the_socket_is_named_once():
    ended = botproxy("health", "--admin", "unix:/x.sock", "--config", "x.yaml")
    assert ended.code == 2
    assert '"--config"' in ended.err
    assert '"--admin"' in ended.err
