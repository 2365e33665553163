"""`botproxy tickets rotate`: new session ticket keys, or the reason why not."""

from __future__ import annotations

from pathlib import Path

from tests.cli.command import botproxy
from tests.cli.scripted import told


def test_new_keys_are_one_line_and_success(tmp_path: Path):
    ended, asked = told(tmp_path, {"rotated": True, "says": ""}, "tickets", "rotate")
    assert asked == "POST /-/rotate HTTP/1.0"
    assert (ended.code, ended.out, ended.err) == (0, "new session ticket keys are in use\n", "")


def test_keys_that_stay_the_old_ones_are_a_failure_with_its_reason(tmp_path: Path):
    ended, _ = told(tmp_path, {"rotated": False, "says": "worker 0 ended with 70"}, "tickets", "rotate")
    assert (ended.code, ended.out) == (1, "")
    error, hint = ended.err.splitlines()
    assert error == "botproxy: error: the session ticket keys stay the old ones: worker 0 ended with 70"
    assert hint.startswith("botproxy: hint: ")


def test_an_answer_that_is_not_ours_is_a_failure(tmp_path: Path):
    ended, _ = told(tmp_path, {}, "tickets", "rotate")
    assert ended.code == 1
    assert "expected the answer of botproxy" in ended.err


def test_where_nobody_answers_that_is_said(tmp_path: Path):
    ended = botproxy("tickets", "rotate", "--admin", f"unix:{tmp_path}/absent.sock")
    assert ended.code == 1
    assert "no such file or directory" in ended.err


def test_tickets_alone_shows_what_there_is():
    ended = botproxy("tickets")
    assert (ended.code, ended.err) == (2, "")
    assert ended.out.index("botproxy tickets rotate") < ended.out.index("Commands:")


def test_a_misspelt_command_gets_the_nearest_one_as_a_hint():
    ended = botproxy("tickets", "rotat")
    assert ended.code == 2
    assert 'did you mean "rotate"?' in ended.err
