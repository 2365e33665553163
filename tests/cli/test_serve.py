"""`botproxy serve`: what the command line means, and that it serves."""

from __future__ import annotations

import datetime
import errno
import http.client
import os
import signal
import ssl
from pathlib import Path

import pytest

from botproxy.cli import development, echo_bot
from botproxy.cli.development import Development
from botproxy.cli.main import main
from tests.cli.command import ACCOUNT, botproxy, serving


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Development:
    return development.certificate(
        tmp_path_factory.mktemp("development"), datetime.datetime.now(datetime.UTC)
    )


def answer(files: Development, port: int, path: str) -> tuple[int, bytes]:
    """Status and body of one request over TLS, verified."""
    context = ssl.create_default_context(cafile=files.ca)
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_certificate_a_key_and_a_bot_are_enough_to_serve(files, tmp_path):
    with (
        echo_bot.running() as bot,
        serving(
            *("serve", "--cert", str(files.chain), "--key", str(files.key)),
            *("--to", f"http://127.0.0.1:{bot}", "--listen", "127.0.0.1:0", "--plain-listen", "off"),
            *("--workers", "1", "--state-dir", str(tmp_path / "state"), *ACCOUNT),
        ) as proxy,
    ):
        status, body = answer(files, proxy.port(), "/telegram?x=1")
        assert status == 200
        assert b'"path": "/telegram?x=1"' in body
        assert proxy.end(signal.SIGTERM) == 0


def test_options_win_over_the_file(files, tmp_path):
    with echo_bot.running() as bot:
        file = tmp_path / "botproxy.yaml"
        file.write_text(
            f"certificates: [{{chain: {files.chain}, key: {files.key}}}]\n"
            f"upstreams: {{bot: {{url: 'http://127.0.0.1:{bot}'}}}}\n"
            "listen: ['192.0.2.1:1']\nplain_listen: ['192.0.2.1:2']\nworkers: 64\n"
            "state_dir: /dev/null/none\nlog: {level: error}\n"
        )
        with serving(
            *("serve", "--config", str(file), "--listen", "127.0.0.1:0", "--plain-listen", "off"),
            *("--workers", "1", "--state-dir", str(tmp_path / "state"), "--log-level", "info", *ACCOUNT),
        ) as proxy:
            assert answer(files, proxy.port(), "/")[0] == 200
            assert len(proxy.processes()) == 3  # supervisor, keeper, one worker
            assert proxy.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("arguments", "says", "hint"),
    [
        (["--config", "a.yaml", "--cert", "c.pem"], 'found "--config" and "--cert"', "into the file"),
        (["--config", "a.yaml", "--to", "http://x:1"], 'found "--config" and "--to"', "into the file"),
        ([], "found neither", "botproxy demo"),
        (["--cert", "c.pem"], 'found "--cert" without "--key"', "--help"),
        (["--key", "k.pem"], 'found "--key" without "--cert"', "--help"),
        (["--to", "http://x:1"], 'found "--to" without "--cert"', "--help"),
    ],
)
def test_a_file_or_a_pair_but_not_both_and_not_neither(arguments, says, hint):
    ended = botproxy("serve", *arguments)
    assert ended.code == 2
    error, tip = ended.err.splitlines()
    assert error.startswith('botproxy: error: expected either "--config FILE" or "--cert CHAIN --key KEY", ')
    assert says in error
    assert hint in tip


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--listen", "443", "expected an address"),
        ("--plain-listen", "[::]", "expected an address"),
        ("--workers", "0", "expected"),
        ("--workers", "many", 'expected "auto" or a number'),
        ("--user", "no body", "expected"),
        ("--log-level", "loud", "expected"),
        ("--to", "localhost:8000", 'expected "http://host:port"'),
        ("--state-dir", "", "expected"),
    ],
)
def test_a_wrong_value_is_blamed_on_its_option(option, value, expected):
    ended = botproxy("serve", "--cert", "c.pem", "--key", "k.pem", option, value)
    assert ended.code == 2
    assert ended.err.startswith(f"botproxy: error: {option}: ")
    assert expected in ended.err


def test_every_wrong_option_is_told_at_once():
    ended = botproxy("serve", "--cert", "c.pem", "--key", "k.pem", "--to", "x", "--workers", "-1")
    assert ended.code == 2
    assert {line.split(":")[2].strip() for line in ended.err.splitlines() if "error" in line} == {
        "--to",
        "--workers",
    }


def test_wrong_options_and_mistakes_of_the_file_are_told_together(tmp_path: Path):
    file = tmp_path / "botproxy.yaml"
    file.write_text("certificates: [{chain: c.pem, key: k.pem}]\nrutes: []\n")
    ended = botproxy("serve", "--config", str(file), "--workers", "none")
    assert ended.code == 2
    assert f"{file}:2: rutes: " in ended.err
    assert "--workers: workers: " in ended.err


def test_a_certificate_that_does_not_exist_is_exit_code_2(tmp_path: Path):
    ended = botproxy(
        *("serve", "--cert", str(tmp_path / "c.pem"), "--key", str(tmp_path / "k.pem")),
        *("--listen", "127.0.0.1:0", "--plain-listen", "off", "--workers", "1"),
        *("--state-dir", str(tmp_path / "state"), *ACCOUNT),
    )
    assert ended.code == 2
    assert f"{tmp_path}/c.pem" in ended.err
    assert f"{tmp_path}/k.pem" in ended.err
    assert "Traceback" not in ended.err


def test_a_machine_without_room_for_a_reader_is_no_wrong_configuration(files, monkeypatch, capsys):
    """1, not 2, with which a service manager would not start it again."""

    def full() -> int:
        raise OSError(errno.EAGAIN, "no room here")

    monkeypatch.setattr(os, "fork", full)
    assert main(["serve", "--cert", str(files.chain), "--key", str(files.key)]) == 1
    assert "cannot be read: no process can be started to read it (no room here)" in capsys.readouterr().err
