"""The operator's way: status, reload and its exit codes, going back, and what a restart makes of it."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certs import Authority, key_pem
from tests.cli.command import ACCOUNT, Ended, botproxy
from tests.e2e.conftest import Start
from tests.e2e.layouts import InPlace, put
from tests.e2e.served import served, wait_served
from tests.harness import Bot, Proxied

NEVER = {"events": False, "poll": "1h"}
"""How nothing is noticed, so that only the operator's word counts."""


@pytest.fixture(scope="module")
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


@pytest.fixture
def site(ca: Authority, tmp_path: Path) -> InPlace:
    return InPlace(tmp_path / "site", ca.issue("localhost"))


def cert(front: Proxied, *arguments: str) -> Ended:
    """`botproxy cert ...`, asked of `front`."""
    return botproxy("cert", *arguments, "--admin", f"unix:{front.config['state_dir']}/admin.sock")


def test_the_exit_code_of_a_reload_says_what_became_of_it(
    start: Start, bot: Bot, ca: Authority, site: InPlace
) -> None:
    front = start(bot.url, certificates=[site.entry], workers=2, admin=None, watch=NEVER)
    assert cert(front, "reload", "--wait").code == 0
    issued = ca.issue("localhost")
    site.renew(issued)
    ended = cert(front, "reload", "--wait")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "site: every worker serves the new certificate (generation 2)\n"
    site.renew(ca.issue("other.test"))
    ended = cert(front, "reload", "--wait")
    assert (ended.code, ended.out) == (3, "")
    error, hint = ended.err.splitlines()
    assert error.startswith("botproxy: error: site: refused, generation 2 is served on (loses_names): ")
    assert hint.startswith("botproxy: hint: ")
    assert cert(front, "reload", "--wait", "--force", "site").code == 0
    ended = cert(front, "reload", "--wait", "nonsense")
    assert ended.code == 2
    assert "there are: site" in ended.err


def test_a_reload_that_waits_for_nothing_is_taken_and_done(
    start: Start, bot: Bot, ca: Authority, site: InPlace
) -> None:
    front = start(bot.url, certificates=[site.entry], admin=None, watch=NEVER)
    issued = ca.issue("localhost")
    site.renew(issued)
    assert cert(front, "reload").code == 0
    wait_served(front, issued)


def test_sighup_looks_at_the_files(start: Start, bot: Bot, ca: Authority, site: InPlace) -> None:
    front = start(bot.url, certificates=[site.entry], watch=NEVER)
    issued = ca.issue("localhost")
    site.renew(issued)
    front.process.send_signal(signal.SIGHUP)
    wait_served(front, issued)
    assert any("trigger=signal" in line for line in front.log.lines)


def test_reload_is_sighup_with_an_answer(start: Start, bot: Bot, ca: Authority, site: InPlace) -> None:
    front = start(bot.url, certificates=[site.entry], admin=None, watch=NEVER)
    site.renew(ca.issue("localhost"))
    ended = botproxy("reload", "--admin", f"unix:{front.config['state_dir']}/admin.sock")
    assert (ended.code, "every worker serves" in ended.out) == (0, True)


def test_the_status_shows_what_is_served_and_what_the_files_hold(
    start: Start, bot: Bot, ca: Authority, site: InPlace
) -> None:
    front = start(bot.url, certificates=[site.entry], workers=2, admin=None)
    ended = cert(front, "status")
    assert ended.code == 0
    assert ended.out.startswith("site: active\n")
    assert "by 2 of 2 workers, generation 1 (kept: 1)" in ended.out
    put(site.chain, ca.issue("other.test").chain_pem)
    assert cert(front, "reload", "--wait").code == 3
    ended = cert(front, "status")
    assert ended.out.startswith("site: settling\n")
    assert "belongs to another certificate" in ended.err
    status = json.loads(cert(front, "status", "--json").out)
    assert status["certificates"][0]["state"] == "settling"
    assert status["watch"] == "events"
    assert "PRIVATE" not in json.dumps(status)


def test_a_rollback_serves_the_older_one_until_the_files_change(
    start: Start, bot: Bot, ca: Authority, site: InPlace, trust: ssl.SSLContext
) -> None:
    front = start(bot.url, certificates=[site.entry], workers=2, admin=None)
    generations = [served(front, "localhost", trust)]
    for _ in range(2):
        issued = ca.issue("localhost")
        site.renew(issued)
        wait_served(front, issued)
        generations.append(issued.leaf)
    assert cert(front, "rollback").code == 0
    assert served(front, "localhost", trust) == generations[1]
    ended = cert(front, "rollback", "site", "--to", "1")
    assert (ended.code, ended.out) == (0, "site: every worker serves the new certificate (generation 1)\n")
    assert served(front, "localhost", trust) == generations[0]
    assert cert(front, "rollback", "--to", "9").code == 1
    assert cert(front, "rollback", "--to", "x").code == 2
    # Neither a look at the files nor a restart takes the newest one again.
    front.process.send_signal(signal.SIGHUP)
    assert front.certificate("site")["refused"]["rule"] == "went_back"
    assert front.stop() == 0
    again = start(bot.url, **{key: front.config[key] for key in ("certificates", "state_dir")}, admin=None)
    assert served(again, "localhost", trust) == generations[0]
    assert again.certificate("site")["state"] == "rejected"
    assert cert(again, "reload", "--wait").code == 0
    assert served(again, "localhost", trust) == generations[2]


def test_five_generations_are_kept(start: Start, bot: Bot, ca: Authority, site: InPlace) -> None:
    front = start(bot.url, certificates=[site.entry], admin=None, watch=NEVER)
    for _ in range(7):
        site.renew(ca.issue("localhost"))
        assert front.reload()["site"]["outcome"] == "active"
    assert front.certificate("site")["kept"] == [4, 5, 6, 7, 8]
    home = Path(front.config["state_dir"]) / "certs"
    for path in (home, *home.rglob("*")):
        if not path.is_symlink():
            assert path.stat().st_mode & 0o077 == 0, path


def test_an_encrypted_key_without_password_never_asks_the_terminal(
    bot: Bot, ca: Authority, tmp_path: Path
) -> None:
    """With a terminal of its own OpenSSL would prompt, and block for ever."""
    issued = ca.issue("localhost")
    site = InPlace(tmp_path / "site", issued)
    put(site.key, key_pem(issued.key, b"sesame"))
    main, side = os.openpty()
    command = [sys.executable, "-m", "botproxy", "serve", "--cert", str(site.chain), "--key", str(site.key)]
    command += ["--listen", "127.0.0.1:0", "--plain-listen", "off", "--state-dir", str(tmp_path / "state")]
    command += ACCOUNT
    process = subprocess.Popen(
        command, stdin=side, stdout=side, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    os.close(side)
    _, errors = process.communicate(timeout=20)
    os.close(main)
    assert process.returncode == 2
    assert "no password is configured" in errors
