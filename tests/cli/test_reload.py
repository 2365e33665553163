"""`botproxy reload`: what is asked of the running one, the words, the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.scripted import told

FILES = {"name": "a", "generation": 7, "rule": "expired", "says": "why", "hint": "do this"}


def test_one_question_is_asked(tmp_path: Path):
    ended, request = told(tmp_path, {"changed": True, "problems": []}, "reload")
    assert (ended.code, ended.out, ended.err) == (0, "the new configuration is in use\n", "")
    assert request == "POST /-/reconfigure HTTP/1.0"


def test_a_configuration_that_is_refused_is_exit_code_2_with_every_reason(tmp_path: Path):
    problems = ["botproxy.yaml:3: rutes: unknown", "user: restart botproxy"]
    ended, _ = told(tmp_path, {"changed": False, "problems": problems}, "reload")
    assert (ended.code, ended.out) == (2, "")
    *errors, hint = ended.err.splitlines()
    assert errors == [f"botproxy: error: {problem}" for problem in problems]
    assert "the old configuration stays" in hint


@pytest.mark.parametrize(
    ("outcome", "code"), [("unchanged", 0), ("active", 0), ("failed", 1), ("rejected", 3), ("unverified", 5)]
)
def test_with_the_old_configuration_the_certificates_decide(tmp_path: Path, outcome: str, code: int):
    answer = {"changed": False, "problems": [], "certificates": [{**FILES, "outcome": outcome}]}
    ended, _ = told(tmp_path, answer, "reload")
    assert ended.code == code
    assert (ended.out + ended.err).startswith(("a: ", "botproxy: error: a: "))


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"changed": True, "problems": [], "more": "x"}, 0),
        ({"changed": False, "problems": ["no"]}, 2),
        ({"changed": False, "problems": [], "certificates": [{**FILES, "outcome": "rejected"}]}, 3),
    ],
)
def test_json_is_the_whole_answer_with_the_same_exit_code(
    tmp_path: Path, answer: dict[str, object], code: int
):
    ended, _ = told(tmp_path, answer, "reload", "--json")
    assert (ended.code, ended.err, json.loads(ended.out)) == (code, "", answer)


@pytest.mark.parametrize("answer", [{}, {"changed": 1, "problems": []}, {"changed": True, "problems": "no"}])
def test_what_is_no_answer_of_botproxy_is_said(tmp_path: Path, answer: dict[str, object]):
    ended, _ = told(tmp_path, answer, "reload")
    assert (ended.code, ended.out) == (1, "")
    assert "error" in ended.err
    assert "Traceback" not in ended.err
