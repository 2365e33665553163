"""`botproxy run`: whose is which part of the command line, and its exit codes."""

from __future__ import annotations

import datetime
import signal
from pathlib import Path

import pytest

from botproxy.cli import development
from botproxy.cli.development import Development
from tests.cli.command import ACCOUNT, botproxy, serving


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Development:
    return development.certificate(
        tmp_path_factory.mktemp("development"), datetime.datetime.now(datetime.UTC)
    )


def options(files: Development, tmp_path: Path) -> list[str]:
    pair = ["--cert", str(files.chain), "--key", str(files.key), "--to", "http://127.0.0.1:9"]
    addresses = ["--listen", "127.0.0.1:0", "--plain-listen", "off"]
    return [*pair, *addresses, "--workers", "1", "--state-dir", str(tmp_path / "state"), *ACCOUNT]


def test_without_a_command_it_says_what_is_missing(files, tmp_path):
    ended = botproxy("run", *options(files, tmp_path))
    assert ended.code == 2
    error, hint = ended.err.splitlines()
    assert error == "botproxy: error: expected the command that starts the bot"
    assert "botproxy run ... -- python bot.py" in hint


def test_without_a_configuration_nothing_is_started(tmp_path):
    mark = tmp_path / "mark"
    ended = botproxy("run", "--", "touch", str(mark))
    assert ended.code == 2
    assert 'expected either "--config FILE" or "--cert CHAIN --key KEY"' in ended.err
    assert not mark.exists()


@pytest.mark.parametrize("separator", [["--"], []])
def test_options_behind_the_command_are_its_own(files, tmp_path, separator):
    command = ["sh", "-c", 'echo "bot: $*"; exit 5', "sh", "--workers", "7", "--", "--help"]
    # It fails with 5 forever; the first time is enough.
    with serving("run", *options(files, tmp_path), *separator, *command) as run:
        assert run.read_out("bot: (.*)")[1] == "--workers 7 -- --help"


def test_it_ends_with_the_exit_code_of_a_bot_that_was_told_to_end(files, tmp_path):
    command = ["sh", "-c", 'trap "exit 9" TERM; echo ready; while :; do sleep 0.05; done']
    with serving("run", *options(files, tmp_path), "--", *command) as run:
        run.port()
        run.read_out("ready")
        assert run.end(signal.SIGTERM) == 9


def test_a_command_that_is_not_there_is_named_and_is_127(files, tmp_path):
    ended = botproxy("run", *options(files, tmp_path), "--", "no-such-bot")
    assert ended.code == 127
    assert 'botproxy: error: "no-such-bot": expected a command, found none of this name in PATH' in ended.err


def test_a_command_that_may_not_be_executed_is_126(files, tmp_path):
    file = tmp_path / "bot.py"
    file.write_text("#!/bin/sh\n")
    ended = botproxy("run", *options(files, tmp_path), "--", str(file))
    assert ended.code == 126
    assert f'botproxy: error: "{file}": permission denied' in ended.err


def test_a_wrong_configuration_is_exit_code_2_and_the_bot_is_not_started(files, tmp_path):
    mark = tmp_path / "mark"
    ended = botproxy("run", *options(files, tmp_path), "--log-level", "loud", "--", "touch", str(mark))
    assert ended.code == 2
    assert ended.err.startswith("botproxy: error: --log-level: ")
    assert not mark.exists()
