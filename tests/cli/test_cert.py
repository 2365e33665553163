"""`botproxy cert`: what is asked of the running one, the words, the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import botproxy
from tests.cli.scripted import told

RELOAD = ("cert", "reload", "--wait")


def change(outcome: str, name: str = "a", **more: object) -> dict[str, Any]:
    return {"name": name, "outcome": outcome, "generation": 7, "rule": "", "says": "", "hint": "", **more}


def answer(*outcomes: str, **more: object) -> dict[str, Any]:
    changes = [change(outcome, f"site{number}") for number, outcome in enumerate(outcomes)]
    return {"certificates": changes, **more}


# Changes


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (RELOAD, "POST /-/reload?wait=1 HTTP/1.0"),
        (("cert", "reload"), "POST /-/reload? HTTP/1.0"),
        ((*RELOAD, "--force", "a", "*.b"), "POST /-/reload?name=a&name=%2A.b&wait=1&force=1 HTTP/1.0"),
        (("cert", "reload", "--compromised"), "POST /-/reload?compromised=1 HTTP/1.0"),
        (("cert", "rollback"), "POST /-/rollback? HTTP/1.0"),
        (("cert", "rollback", "a b", "--to", "7"), "POST /-/rollback?name=a+b&to=7 HTTP/1.0"),
        (("cert", "rollback", "--force"), "POST /-/rollback?force=1 HTTP/1.0"),
    ],
)
def test_the_options_are_the_parameters(tmp_path: Path, arguments: tuple[str, ...], asked: str):
    ended, request = told(tmp_path, answer("active"), *arguments)
    assert (ended.code, ended.err, request) == (0, "", asked)


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [
        ("unchanged", 0, "the files hold what is served (generation 7)"),
        ("active", 0, "every worker serves the new certificate (generation 7)"),
        ("failed", 1, "nothing was changed: why"),
        ("rejected", 3, "refused, generation 7 is served on (expired): why"),
        ("rolled_back", 4, "rolled back to generation 7: why"),
        (
            "unverified",
            5,
            "the workers serve the new certificate (generation 7), not all could be asked: why",
        ),
    ],
)
def test_each_outcome_has_its_words_and_its_exit_code(tmp_path: Path, outcome: str, code: int, words: str):
    rule = "expired" if outcome == "rejected" else ""
    found = change(outcome, rule=rule, says="why", hint="do this" if code else "")
    ended, _ = told(tmp_path, {"certificates": [found]}, *RELOAD)
    assert ended.code == code
    if code == 0:
        assert (ended.out, ended.err) == (f"a: {words}\n", "")
    else:
        assert ended.out == ""
        assert ended.err == f"botproxy: error: a: {words}\nbotproxy: hint: do this\n"


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        (("active", "rejected"), 3),
        (("unverified", "rejected", "active"), 5),
        (("rejected", "rolled_back", "unverified"), 4),
        (("rolled_back", "failed"), 1),
        ((), 0),
    ],
)
def test_of_several_outcomes_the_worst_is_the_exit_code(tmp_path: Path, outcomes: tuple[str, ...], code: int):
    ended, _ = told(tmp_path, answer(*outcomes), *RELOAD)
    assert ended.code == code
    assert len((ended.out + ended.err).splitlines()) == len(outcomes)


def test_ticket_keys_that_stay_the_old_ones_are_a_failure(tmp_path: Path):
    ended, _ = told(tmp_path, answer("active", rotation="no room"), *RELOAD, "--compromised")
    assert ended.code == 1
    assert ended.out == "site0: every worker serves the new certificate (generation 7)\n"
    assert ended.err.splitlines() == [
        "botproxy: error: the session ticket keys stay the old ones: no room",
        "botproxy: hint: botproxy tickets rotate",
    ]
    ended, _ = told(tmp_path, answer("unchanged", rotation="", old_keys=["a"]), *RELOAD, "--compromised")
    assert ended.code == 1
    assert "a: the key that is served has not been replaced" in ended.err
    ended, _ = told(tmp_path, answer("active", rotation="", old_keys=[]), *RELOAD, "--compromised")
    assert (ended.code, ended.err) == (0, "")


def test_an_old_key_that_stays_on_disk_is_a_failure(tmp_path: Path):
    removal = "site0: 1: Permission denied\x1b[2J"
    ended, _ = told(tmp_path, answer("active", rotation="", removal=removal), *RELOAD, "--compromised")
    assert ended.code == 1
    error, hint = ended.err.splitlines()
    assert error.startswith("botproxy: error: the old key is still in the state directory: site0: 1: ")
    assert "\x1b" not in error
    assert "tried again" in hint


def test_without_wait_nothing_is_known_yet(tmp_path: Path):
    ended, _ = told(tmp_path, {"taken": True}, "cert", "reload", status=202)
    assert (ended.code, ended.err) == (0, "")
    assert '"botproxy cert status" shows what became of it' in ended.out


@pytest.mark.parametrize("arguments", [RELOAD, ("cert", "rollback")])
def test_json_is_the_whole_answer_with_the_same_exit_code(tmp_path: Path, arguments: tuple[str, ...]):
    whole = answer("active", "rejected", more="x")
    ended, _ = told(tmp_path, whole, *arguments, "--json")
    assert (ended.code, ended.err, json.loads(ended.out)) == (3, "", whole)


def test_what_cannot_be_meant_is_a_usage_error_in_the_keepers_words(tmp_path: Path):
    says = {"error": "no certificate is called 'x'", "hint": "there are: a, b"}
    ended, _ = told(tmp_path, says, *RELOAD, "x", status=404)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        "botproxy: error: no certificate is called 'x'",
        "botproxy: hint: there are: a, b",
    ]


# Status

SITE: dict[str, Any] = {
    "name": "bot.test",
    "state": "active",
    "names": ["bot.test", "*.bot.test"],
    "chain": "/etc/ssl/bot.pem",
    "issuer": "CN=R\x1b13",
    "serial": "5f",
    "not_after": "2026-12-24T10:00:00+00:00",
    "renewal_due": "2026-11-24T10:00:00+00:00",
    "stage": "renewal_due",
    "served_by": 1,
    "workers": 2,
    "generation": 7,
    "kept": [6, 7],
    "refused": None,
    "unsettled": None,
}


def test_status_shows_every_certificate(tmp_path: Path):
    whole = {"certificates": [SITE, SITE | {"name": "other", "kept": []}], "watch": "events", "workers": []}
    ended, request = told(tmp_path, whole, "cert", "status")
    assert request == "GET /-/certificates HTTP/1.0"
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[:7] == [
        "bot.test: active",
        "  names   bot.test, *.bot.test",
        "  file    /etc/ssl/bot.pem",
        "  issuer  CN=R\\x1b13",
        "  serial  5f",
        "  valid   until 2026-12-24, renewal due 2026-11-24 (renewal due)",
        "  served  by 1 of 2 workers, generation 7 (kept: 6, 7)",
    ]
    assert ended.out.splitlines()[7] == "other: active"
    assert "(kept: none)" in ended.out
    assert "polled" not in ended.out


def test_status_says_what_is_wrong_with_the_files_and_that_they_are_polled(tmp_path: Path):
    refused = SITE | {
        "state": "rejected",
        "refused": {"rule": "expired", "says": "it \x1b[31mhas expired", "hint": "renew it", "since": "x"},
    }
    unsettled = SITE | {
        "name": "other",
        "unsettled": [{"problem": "a.pem: is cut", "hint": None}, {"problem": "a.key", "hint": "wait"}],
    }
    whole = {"certificates": [refused, unsettled], "watch": "poll", "workers": []}
    ended, _ = told(tmp_path, whole, "cert", "status")
    assert ended.code == 0
    assert ended.err.splitlines() == [
        "botproxy: error: bot.test: the files are refused (expired): it \\x1b[31mhas expired",
        "botproxy: hint: renew it",
        "botproxy: error: other: a.pem: is cut",
        "botproxy: error: other: a.key",
        "botproxy: hint: wait",
    ]
    assert "polled" in ended.out.splitlines()[-1]


def test_status_in_json_is_the_whole_answer(tmp_path: Path):
    whole = {"certificates": [SITE], "watch": "poll", "workers": []}
    ended, _ = told(tmp_path, whole, "cert", "status", "--json")
    assert (ended.code, json.loads(ended.out)) == (0, whole)


# Nobody to ask, nothing to ask for


@pytest.mark.parametrize("arguments", [("cert", "status"), RELOAD, ("cert", "rollback"), ("reload",)])
def test_where_nobody_answers_that_is_said_with_a_hint(tmp_path: Path, arguments: tuple[str, ...]):
    ended = botproxy(*arguments, "--admin", f"unix:{tmp_path}/absent.sock")
    assert (ended.code, ended.out) == (1, "")
    error, hint = ended.err.splitlines()
    assert error == f'botproxy: error: "{tmp_path}/absent.sock": no such file or directory'
    assert hint.startswith("botproxy: hint: ")


@pytest.mark.parametrize("arguments", [("cert", "status"), RELOAD])
@pytest.mark.parametrize("foreign", [{}, {"certificates": 3}])
def test_an_answer_that_is_not_ours_is_a_failure(
    tmp_path: Path, arguments: tuple[str, ...], foreign: dict[str, Any]
):
    ended, _ = told(tmp_path, foreign, *arguments)
    assert ended.code == 1
    assert "expected the answer of botproxy" in ended.err
    assert "Traceback" not in ended.err


def test_cert_alone_shows_what_there_is(tmp_path: Path):
    ended = botproxy("cert")
    assert (ended.code, ended.err) == (2, "")
    listed = ended.out[ended.out.index("Commands:") :]
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["status", "reload", "rollback"]
    assert ended.out.index("botproxy cert status") < ended.out.index("Usage:")


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (("staus",), 'unknown command "staus"', 'did you mean "status"?'),
        (("reload", "--wiat"), 'unknown option "--wiat" of "botproxy cert reload"', 'did you mean "--wait"?'),
        (
            ("rollback", "a", "b"),
            "got unexpected extra argument (b)",
            '"botproxy cert rollback --help" shows what there is',
        ),
    ],
)
def test_a_slip_of_the_hand_is_a_usage_error_with_a_hint(arguments: tuple[str, ...], error: str, hint: str):
    ended = botproxy("cert", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"botproxy: error: {error}\nbotproxy: hint: {hint}\n"


@pytest.mark.parametrize("verb", ["status", "reload", "rollback"])
def test_help_begins_with_examples(verb: str):
    ended = botproxy("cert", verb, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"botproxy cert {verb}: ")
    assert ended.out.index(f"\n  botproxy cert {verb}") < ended.out.index("Usage:")
