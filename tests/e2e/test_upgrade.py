"""The program replaces itself: no client notices, and a successor that fails changes nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.certs import Authority
from tests.cli.command import botproxy
from tests.e2e.conftest import Start
from tests.e2e.layouts import RenameOver
from tests.e2e.served import Crowd, served, wait_served
from tests.e2e.test_websocket import HANDSHAKE, echo
from tests.harness import Bot, Proxied, eventually
from tests.wire import get

ROOT = Path(__file__).parents[2]
TAKEN = "\nplain_listen: ['127.0.0.1:%d']\n"
"""A listener on a port that somebody else has."""


@pytest.fixture(scope="module")
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ended(pid: int) -> bool:
    return not lives(pid)


def started(front: Proxied, since: int = 0) -> int:
    """The process id of the successor that was started."""
    line = front.log.wait_for(lambda line: "a successor is started" in line, since)
    found = re.search(r" pid=(\d+)", line)
    assert found is not None
    return int(found[1])


def workers_of(supervisor: int) -> list[int]:
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [
        int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "botproxy-worker"
    ]


@contextmanager
def ending(front: Proxied) -> Iterator[list[int]]:
    """Successors that are ended with the test, the last one in order."""
    supervisors: list[int] = []
    try:
        yield supervisors
    finally:
        for pid in reversed(supervisors):
            if lives(pid):
                os.kill(pid, signal.SIGTERM)
                eventually(partial(ended, pid))


def upgrade(front: Proxied, supervisor: int, supervisors: list[int]) -> int:
    """Have `supervisor` replaced; its successor, once that serves."""
    mark = len(front.log.lines)
    os.kill(supervisor, signal.SIGUSR2)
    pid = started(front, mark)
    supervisors.append(pid)
    front.log.wait_for(lambda line: "the successor serves" in line and f"pid={pid}" in line, mark)
    return pid


def test_upgrades_in_a_row_and_no_client_fails(start: Start, bot: Bot, trust: ssl.SSLContext) -> None:
    front = start(bot.url, workers=2, admin=None)
    with ending(front) as supervisors:
        supervisor = front.process.pid
        with Crowd(front, trust) as crowd:
            for _ in range(3):
                before, supervisor = supervisor, upgrade(front, supervisor, supervisors)
                crowd.wait_for(20)
                if before == front.process.pid:
                    assert front.wait() == 0
                eventually(partial(ended, before))
        assert crowd.failures == []
        assert len(workers_of(supervisor)) == 2
        assert front.ask("/-/ready")["ready"]
        assert Path(f"/proc/{supervisor}/comm").read_text() == "botproxy-super\n"


def test_a_websocket_lives_on_in_the_old_one(start: Start, trust: ssl.SSLContext) -> None:
    with Bot(echo) as bot:
        front = start(bot.url, timeouts={"retire": "unlimited"})
        with ending(front) as supervisors, front.connect(trust) as tunnel:
            tunnel.send(get("/", *HANDSHAKE))
            assert b" 101 " in tunnel.read_until(b"\r\n\r\n")
            upgrade(front, front.process.pid, supervisors)
            for _ in range(3):
                tunnel.send(b"still there")
                assert tunnel.read_exactly(11) == b"still there"
            assert front.process.poll() is None
            tunnel.close()
            assert front.wait() == 0


def test_a_successor_that_fails_leaves_the_old_one_serving(
    start: Start, bot: Bot, trust: ssl.SSLContext
) -> None:
    front = start(bot.url, admin=None)
    file = front.directory / "botproxy.yaml"
    good = file.read_text().replace("plain_listen: []\n", "")
    before = front.children()
    with Crowd(front, trust) as crowd:
        for wrong in ("workers: 0\n", "no: yaml: at all", good + "\nwrkers: 3\n", good + TAKEN % bot.port):
            file.write_text(wrong)
            mark = len(front.log.lines)
            front.process.send_signal(signal.SIGUSR2)
            front.log.wait_for(lambda line: "before it served" in line, mark)
            crowd.wait_for(5)
            assert front.ask("/-/ready")["ready"], "its admin socket is still there"
    assert crowd.failures == []
    assert front.children() == before
    file.write_text(good)
    with ending(front) as supervisors:
        upgrade(front, front.process.pid, supervisors)
        assert front.wait() == 0
        with front.connect(trust) as client:
            assert client.request(get()).status == 200


def test_a_successor_that_is_killed_leaves_the_old_one_serving(
    start: Start, bot: Bot, trust: ssl.SSLContext
) -> None:
    front = start(bot.url, admin=None)
    with Crowd(front, trust, each=1) as crowd:
        for _ in range(3):
            mark = len(front.log.lines)
            front.process.send_signal(signal.SIGUSR2)
            os.kill(started(front, mark), signal.SIGKILL)
            front.log.wait_for(lambda line: "the successor ended with -9" in line, mark)
            crowd.wait_for(5)
    assert crowd.failures == []
    assert front.ask("/-/ready")["ready"]


def test_certificates_are_renewed_by_the_successor(
    start: Start, bot: Bot, ca: Authority, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    site = RenameOver(tmp_path / "site", ca.issue("localhost"))
    front = start(bot.url, certificates=[site.entry], admin=None)
    with ending(front) as supervisors:
        upgrade(front, front.process.pid, supervisors)
        assert front.wait() == 0
        issued = ca.issue("localhost")
        site.renew(issued)
        wait_served(front, issued)
        assert served(front, "localhost", trust) == issued.leaf


def test_what_is_told_to_the_old_one_reaches_the_new_one_and_a_stop_means_both(
    start: Start, trust: ssl.SSLContext
) -> None:
    """Whoever has missed the change knows only the old one."""
    with Bot(echo) as bot:
        front = start(bot.url, timeouts={"retire": "unlimited", "drain": "1s"})
        with ending(front) as supervisors, front.connect(trust) as tunnel:
            tunnel.send(get("/", *HANDSHAKE))
            assert b" 101 " in tunnel.read_until(b"\r\n\r\n")
            successor = upgrade(front, front.process.pid, supervisors)
            mark = len(front.log.lines)
            front.process.send_signal(signal.SIGHUP)
            front.log.wait_for(lambda line: "the configuration is the same" in line, mark)
            front.terminate()
            assert front.wait() == 0
            eventually(partial(ended, successor))


def test_a_reload_with_a_new_version_installed_is_an_upgrade(
    start: Start, bot: Bot, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    installed = tmp_path / "installed"
    shutil.copytree(ROOT / "botproxy", installed / "botproxy", ignore=shutil.ignore_patterns("__pycache__"))
    package = installed / "botproxy/__init__.py"
    front = start(bot.url, admin=None, env={"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"})
    text = package.read_text()
    package.write_text(re.sub(r'__version__ = "[^"]+"', '__version__ = "99.0"', text))
    with ending(front) as supervisors, Crowd(front, trust, each=1) as crowd:
        botproxy("reload", "--admin", f"unix:{front.config['state_dir']}/admin.sock")
        supervisors.append(started(front))
        front.log.wait_for(lambda line: "msg=serving" in line and "version=99.0" in line)
        assert front.wait() == 0
        crowd.wait_for(5)
    assert crowd.failures == []
