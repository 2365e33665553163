"""Whoever dies while a certificate is renewed: clients notice nothing, and in the end all is consistent."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.certs import Authority, Issued
from tests.e2e.conftest import Start
from tests.e2e.layouts import Certbot, RenameOver
from tests.e2e.served import Crowd, serial, served, wait_served
from tests.harness import Bot, Proxied
from tests.wire import PATIENCE

KILLING = Path(__file__).parent / "killing"


@pytest.fixture(scope="module")
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


@pytest.fixture
def site(ca: Authority, tmp_path: Path) -> Certbot:
    return Certbot(tmp_path / "site", ca.issue("localhost"))


def wait_consistent(front: Proxied, issued: Issued) -> None:
    """Until every worker serves `issued`, and it is the last good one on disk."""
    wanted = serial(issued)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            status, ready = front.certificate("site"), front.ask("/-/ready")
        except ConnectionResetError:
            assert time.monotonic() < deadline
            continue  # the keeper died while it was asked
        if status["serial"] == wanted and ready["ready"] and status["generation"] and not ready["degraded"]:
            break
        assert time.monotonic() < deadline, (status, ready)
        time.sleep(0.05)
    home = Path(front.config["state_dir"]) / "certs/site"
    current = home / "current"
    assert int(os.readlink(current)) == status["generation"]
    leaf = x509.load_pem_x509_certificate((current / "fullchain.pem").read_bytes())
    assert leaf == issued.leaf
    for generation in home.iterdir():
        if generation.name.isdecimal():
            assert {each.name for each in generation.iterdir()} == {
                "fullchain.pem",
                "privkey.pem",
                "meta.json",
            }
            assert json.loads((generation / "meta.json").read_text())["generation"] == int(generation.name)


def wait_confirmed(front: Proxied) -> None:
    """Until the work of a start is done."""
    deadline = time.monotonic() + PATIENCE
    while front.certificate("site")["last"] is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def never_goes_back(crowd: Crowd, *order: Issued) -> None:
    """Nobody failed, and nobody got anything but these."""
    assert crowd.failures == []
    assert crowd.serials() <= {serial(issued) for issued in order}


def test_a_keeper_that_was_killed_is_replaced_and_catches_up(
    start: Start, bot: Bot, ca: Authority, site: Certbot, trust: ssl.SSLContext
) -> None:
    front = start(bot.url, certificates=[site.entry], workers=2, admin=None)
    with Crowd(front, trust) as crowd:
        first = front.keeper
        os.kill(first, signal.SIGKILL)
        issued = ca.issue("localhost")
        site.renew(issued)
        wait_consistent(front, issued)
        assert front.keeper != first
        again = ca.issue("localhost")
        site.renew(again)
        wait_served(front, again)
    assert crowd.failures == []
    assert len(front.workers()) == 2


def test_the_keeper_may_be_killed_at_any_step(
    start: Start, bot: Bot, ca: Authority, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    """Before every fourth of its file and socket operations, until a renewal has no more of them."""
    first = ca.issue("localhost")
    steps = []
    for at in range(1, 400, 4):
        home = tmp_path / str(at)
        home.mkdir()
        home.chmod(0o755)
        (home / "at").write_text(str(at))
        site = Certbot(home / "site", first)
        front = start(
            bot.url,
            certificates=[site.entry],
            workers=2,
            admin=None,
            env={"KILL_HOME": str(home), "PYTHONPATH": str(KILLING)},
        )
        wait_confirmed(front)
        issued = ca.issue("localhost")
        with Crowd(front, trust, each=1) as crowd:
            (home / "armed").touch()
            site.renew(issued)
            wait_consistent(front, issued)
        never_goes_back(crowd, first, issued)
        killed = [each.name for each in home.glob("killed*")]
        front.stop()
        if not killed:
            break
        steps.append(killed[0])
    assert len(steps) > 5
    assert "killed before open" in steps
    assert any("socket" in step for step in steps)


def test_a_worker_that_does_not_answer_is_replaced_and_the_renewal_goes_on(
    start: Start, bot: Bot, ca: Authority, site: Certbot, trust: ssl.SSLContext
) -> None:
    front = start(bot.url, certificates=[site.entry], workers=2, admin=None)
    mute = front.workers()[0]
    os.kill(mute, signal.SIGSTOP)
    issued = ca.issue("localhost")
    site.renew(issued)
    front.log.wait_for(lambda line: "a worker is replaced" in line and f"pid={mute}" in line)
    wait_consistent(front, issued)
    assert mute not in front.workers()
    for _ in range(8):
        assert served(front, "localhost", trust) == issued.leaf


@pytest.mark.parametrize("state", ["validating", "preparing", "committed", "verifying"])
def test_workers_may_be_killed_at_any_step(
    start: Start, bot: Bot, ca: Authority, site: Certbot, trust: ssl.SSLContext, state: str
) -> None:
    front = start(bot.url, certificates=[site.entry], workers=2, admin=None, log={"level": "debug"})
    issued = ca.issue("localhost")
    victims = front.workers()
    site.renew(issued)
    front.log.wait_for(lambda line: f"state={state} " in line)
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    wait_consistent(front, issued)
    for _ in range(8):
        assert served(front, "localhost", trust) == issued.leaf


def test_a_crash_of_everything_leaves_a_start_with_the_last_good_certificate(
    start: Start, bot: Bot, ca: Authority, site: Certbot, trust: ssl.SSLContext
) -> None:
    front = start(
        bot.url, certificates=[site.entry], admin=None, log={"level": "debug"}, ends_with=-signal.SIGKILL
    )
    issued = ca.issue("localhost")
    site.renew(issued)
    front.log.wait_for(lambda line: "state=preparing " in line)
    keeper = front.keeper
    front.process.kill()
    os.kill(keeper, signal.SIGKILL)
    front.wait()
    again = start(bot.url, **{key: front.config[key] for key in ("certificates", "state_dir")}, admin=None)
    wait_consistent(again, issued)
    assert served(again, "localhost", trust) == issued.leaf


# The disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for little."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_keeps_no_certificate_from_being_served(
    start: Start, bot: Bot, ca: Authority, site: Certbot, trust: ssl.SSLContext, small_disk: Path
) -> None:
    front = start(bot.url, certificates=[site.entry], workers=2, admin=None, state_dir=str(small_disk))
    try:
        fill = small_disk / "fill"
        with open(fill, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1024))
            except OSError:
                pass  # it is full
        for _ in range(3):
            issued = ca.issue("localhost")
            site.renew(issued)
            wait_served(front, issued)
            assert served(front, "localhost", trust) == issued.leaf
        said = [line for line in front.log.lines if "cannot be written down" in line]
        assert len(said) == 2, "the generation and the audit, once each"
        assert all('why="No space left on device"' in line for line in said)
        kept, audit = front.ask("/-/ready")["degraded"]
        assert "could not be kept" in kept
        assert "audit" in audit
        assert sorted(os.listdir(small_disk / "certs/site")) == ["1", "current"]
        fill.unlink()
        front.reload()  # a look at everything, as time brings one by itself
        wait_consistent(front, issued)
        front.log.wait_for(lambda line: "can be written down again" in line and "what=generation" in line)
        front.log.wait_for(lambda line: "can be written down again" in line and "what=audit" in line)
        assert front.ask("/-/ready")["degraded"] == []
        audited = map(json.loads, (small_disk / "audit.jsonl").read_text().splitlines())
        assert [line["trigger"] for line in audited] == ["start", "event", "event", "event"]
    finally:
        front.stop()


def test_a_state_directory_that_vanishes_is_made_again(
    start: Start, bot: Bot, ca: Authority, site: Certbot, trust: ssl.SSLContext
) -> None:
    front = start(bot.url, certificates=[site.entry], admin=None)
    kept = Path(front.config["state_dir"]) / "certs"
    kept.rename(kept.with_name("gone"))  # in one step: the keeper may be writing there
    issued = ca.issue("localhost")
    site.renew(issued)
    wait_served(front, issued)
    wait_consistent(front, issued)


# The clock


FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


@pytest.fixture
def clock(tmp_path: Path) -> Any:
    """A clock that a test can turn: `clock.write_text("+100d")`."""
    if FAKETIME is None:
        if os.environ.get("TESTS_SKIP_NOTHING"):
            pytest.fail("libfaketime is not installed")
        pytest.skip("libfaketime is not installed")
    file = tmp_path / "clock"
    file.write_text("+0d")
    return file


def wait_for_phrase(front: Proxied, phrase: str, since: int) -> None:
    front.log.wait_for(lambda line: phrase in line, since)


def test_a_clock_that_jumps_changes_what_is_said_and_nothing_else(
    start: Start, bot: Bot, ca: Authority, site: RenameOver, tmp_path: Path, clock: Path
) -> None:
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    front = start(
        bot.url,
        certificates=[site.entry],
        workers=2,
        admin=None,
        env={
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        },
    )
    before = served(front, "localhost", anyone)
    for offset, phrase in (
        ("+61d", "the renewal of a certificate is due"),
        ("+76d", "a certificate should have been renewed long ago"),
        ("+86d", "a certificate is about to expire"),
        ("+100d", "a certificate has expired"),
        ("+0d", "a certificate is valid again"),
        ("-9d", "a certificate is not valid yet"),
        ("+0d", "a certificate is valid again"),
    ):
        mark = len(front.log.lines)
        clock.write_text(offset)
        for _ in range(2):
            front.reload()  # a look at everything, as time brings one by itself
        wait_for_phrase(front, phrase, mark)
        said = [line for line in front.log.lines[mark:] if "certificate=site" in line]
        assert [phrase in line for line in said] == [True], (offset, said)
        assert served(front, "localhost", anyone) == before
    issued = ca.issue("localhost")
    site.renew(issued)
    wait_served(front, issued)
