"""How every command line is read and how it ends."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from botproxy import __version__
from botproxy.cli.main import VERBS
from tests.cli.command import PATIENCE, botproxy, environment


def test_the_version_is_one_line_and_success():
    ended = botproxy("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"botproxy {__version__}\n", "")


def test_help_begins_with_examples_and_then_lists_every_verb():
    ended = botproxy("--help")
    assert ended.code == 0
    assert ended.out.index("botproxy demo") < ended.out.index("Usage:")
    listed = ended.out[ended.out.index("Commands:") :]
    assert [line.split()[0] for line in listed.splitlines()[1:]] == list(VERBS)


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_of_a_verb_begins_with_examples(verb):
    ended = botproxy(verb, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"botproxy {verb}: ")
    assert ended.out.index(f"\n  botproxy {verb}") < ended.out.index("Usage:")


def test_a_command_line_without_a_verb_is_a_usage_error_that_shows_the_help():
    ended = botproxy()
    assert ended.code == 2
    assert "Commands:" in ended.out


def test_a_misspelt_verb_gets_the_nearest_one_as_a_hint():
    ended = botproxy("srve")
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err == 'botproxy: error: unknown command "srve"\nbotproxy: hint: did you mean "serve"?\n'


def test_a_misspelt_option_gets_the_nearest_one_as_a_hint():
    ended = botproxy("serve", "--conifg", "x.yaml")
    assert ended.code == 2
    assert ended.err == (
        'botproxy: error: unknown option "--conifg" of "botproxy serve"\n'
        'botproxy: hint: did you mean "--config"?\n'
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check"], 'expected "CONFIG"'),
        (["check", "a.yaml", "b.yaml"], "unexpected extra argument"),
        (["serve", "--config"], 'option "--config"'),
        (["health", "--json=yes"], 'option "--json"'),
        (["cert", "status", "x"], "unexpected extra argument"),
        (["tickets", "rotate", "--jsn"], 'unknown option "--jsn" of "botproxy tickets rotate"'),
        (["totally-unlike"], 'unknown command "totally-unlike"'),
    ],
)
def test_usage_errors_speak_in_one_form(arguments, says):
    ended = botproxy(*arguments)
    assert ended.code == 2
    error, hint = ended.err.splitlines()
    assert re.fullmatch(r'botproxy: error: [a-z"].*[^.]', error)
    assert says in error
    assert re.fullmatch(r'botproxy: hint: "botproxy.* --help" shows what there is', hint)


def test_control_characters_of_an_argument_do_not_reach_the_terminal():
    ended = botproxy("\x1b[31mred\n")
    assert ended.code == 2
    assert "\x1b" not in ended.err
    assert "\\x1b[31mred\\n" in ended.err


def test_an_unreadable_argument_is_reported_and_not_a_crash():
    ended = botproxy(os.fsdecode(b"\xff\xfe"))
    assert ended.code == 2
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("changes", "coloured"), [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)]
)
def test_errors_are_coloured_on_a_terminal_unless_the_user_said_no(changes, coloured):
    assert ("\x1b[" in _on_a_terminal("srve", changes)) is coloured


def test_errors_are_not_coloured_in_a_pipe():
    assert "\x1b[" not in botproxy("srve", env={"TERM": "xterm"}).err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["health", "--help"],
        ["cert", "reload", "--help"],
        ["cert", "status", "--admin", "unix:/absent.sock"],
        ["tickets", "rotate", "--help"],
        ["reload", "--help"],
        ["srve"],
    ],
)
def test_what_needs_nothing_heavy_imports_nothing_heavy(arguments):
    program = (
        "import sys\nfrom botproxy.cli.main import main\nmain(sys.argv[1:])\n"
        "heavy = {'pydantic', 'uvloop', 'asyncio', 'cryptography', 'yaml', 'ssl'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _on_a_terminal(argument: str, changes: dict[str, str]) -> str:
    """What `botproxy ARGUMENT` writes to stderr when that is a terminal."""
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-m", "botproxy", argument],
            stderr=theirs,
            timeout=PATIENCE,
            env=environment(changes),
            check=False,
        )
        return os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
