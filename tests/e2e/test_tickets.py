"""Sessions resume over everything that happens to certificates and workers, until their keys are renewed."""

from __future__ import annotations

import os
import signal
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certs import Authority
from tests.cli.command import botproxy
from tests.e2e.conftest import Start
from tests.e2e.layouts import RenameOver
from tests.e2e.served import Crowd, resumes, served, session_of, wait_served
from tests.harness import Bot, Proxied
from tests.wire import OK, PATIENCE, Wire, get

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


@pytest.fixture
def site(ca: Authority, tmp_path: Path) -> RenameOver:
    return RenameOver(tmp_path / "site", ca.issue("localhost"))


def client(ca: Authority, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ca.trust()
    context.minimum_version = context.maximum_version = version
    return context


def rotate(front: Proxied) -> None:
    ended = botproxy("tickets", "rotate", "--admin", f"unix:{front.config['state_dir']}/admin.sock")
    assert (ended.code, ended.out) == (0, "new session ticket keys are in use\n"), ended.err


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_resumes_after_a_renewal_in_every_worker(
    start: Start, bot: Bot, ca: Authority, site: RenameOver, version: ssl.TLSVersion
) -> None:
    front = start(bot.url, certificates=[site.entry], workers=2)
    context = client(ca, version)
    session = session_of(front, context)
    issued = ca.issue("localhost")
    site.renew(issued)
    wait_served(front, issued)
    assert all(resumes(front, context, session) for _ in range(12))
    assert served(front, "localhost", client(ca, version)) == issued.leaf, "without a session: the new one"


def test_a_session_resumes_in_the_replacement_of_a_worker_and_of_the_keeper(
    start: Start, bot: Bot, ca: Authority, site: RenameOver
) -> None:
    front = start(bot.url, certificates=[site.entry], workers=1)
    context = client(ca, ssl.TLSVersion.TLSv1_3)
    session = session_of(front, context)
    for victim in (front.workers()[0], front.keeper):
        mark = len(front.log.lines)
        os.kill(victim, signal.SIGKILL)
        front.log.wait_for(lambda line: "a worker serves the certificates" in line, mark)
        assert resumes(front, context, session)


def test_no_session_resumes_after_a_rotation_and_nobody_is_turned_away(
    start: Start, bot: Bot, ca: Authority, site: RenameOver, trust: ssl.SSLContext
) -> None:
    front = start(bot.url, certificates=[site.entry], workers=2, admin=None)
    sessions = [(context, session_of(front, context)) for context in (client(ca, v) for v in VERSIONS)]
    before = set(front.workers())
    with Crowd(front, trust) as crowd:
        for _ in range(5):  # more than may drain beside each other
            rotate(front)
            crowd.wait_for(20)
        assert not any(resumes(front, context, session) for context, session in sessions for _ in range(6))
        crowd.wait_for(10)
    assert crowd.failures == []
    assert before.isdisjoint(worker["pid"] for worker in front.ask("/-/ready")["workers"])
    for version in VERSIONS:
        context = client(ca, version)
        session = session_of(front, context)
        assert all(resumes(front, context, session) for _ in range(6)), "new sessions resume in every worker"


def test_keys_are_renewed_by_the_clock(start: Start, bot: Bot, ca: Authority, site: RenameOver) -> None:
    front = start(bot.url, certificates=[site.entry], workers=1, tls={"ticket_rotation": "1500ms"})
    context = client(ca, ssl.TLSVersion.TLSv1_3)
    for _ in range(3):
        session = session_of(front, context)
        mark = len(front.log.lines)
        front.log.wait_for(lambda line: "new session ticket keys are in use" in line, mark)
        assert not resumes(front, context, session)


def test_what_is_open_outlives_a_rotation_and_is_ended_by_the_third(
    start: Start, ca: Authority, site: RenameOver, trust: ssl.SSLContext
) -> None:
    """At most two generations of workers drain."""

    def tunnel(wire: Wire) -> None:
        head = wire.read_until(b"\r\n\r\n")
        if b"Upgrade" not in head:
            wire.send(OK)
            return
        wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        )
        while data := wire.read_some():
            wire.send(data)

    upgrade = get(
        "/",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    with Bot(tunnel) as bot:
        front = start(bot.url, certificates=[site.entry], workers=1, admin=None, timeouts={"drain": "1s"})
        with front.connect(trust) as client:
            assert client.request(upgrade).status == 101
            for _ in range(2):
                rotate(front)
                client.send(b"still there")
                assert client.read_exactly(11) == b"still there"
            rotate(front)
            assert client.read_to_end()[0] == b""
            with front.connect(trust) as another:
                assert another.request(get("/", "Connection: close")).status == 200


def test_a_compromised_key_takes_all_sessions_and_older_generations_with_it(
    start: Start, bot: Bot, ca: Authority, site: RenameOver
) -> None:
    front = start(
        bot.url, certificates=[site.entry], workers=2, admin=None, watch={"poll": "1h", "events": False}
    )
    context = client(ca, ssl.TLSVersion.TLSv1_3)
    session = session_of(front, context)
    issued = ca.issue("localhost")
    site.renew(issued)
    admin = f"unix:{front.config['state_dir']}/admin.sock"
    ended = botproxy("cert", "reload", "--wait", "--compromised", "--admin", admin)
    assert ended.code == 0, ended.err
    assert not any(resumes(front, context, session) for _ in range(6))
    assert served(front, "localhost", context) == issued.leaf
    assert front.certificate("site")["kept"] == [2]


def test_a_rotation_that_cannot_be_done_leaves_everything_as_it_was(
    start: Start, bot: Bot, ca: Authority, site: RenameOver
) -> None:
    """The keeper is stopped, so the new worker gets no certificates; then it dies."""
    front = start(bot.url, certificates=[site.entry], workers=1, tls={"ticket_rotation": "2s"})
    context = client(ca, ssl.TLSVersion.TLSv1_3)
    [serving] = front.workers()
    keeper = front.keeper
    os.kill(keeper, signal.SIGSTOP)
    try:
        session = session_of(front, context)
        deadline = time.monotonic() + PATIENCE
        while not (coming := set(front.workers()) - {serving}):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(coming.pop(), signal.SIGKILL)
        front.log.wait_for(lambda line: "the session ticket keys stay the old ones" in line)
        assert resumes(front, context, session)
        assert serving in front.workers()
    finally:
        os.kill(keeper, signal.SIGCONT)
    front.log.wait_for(lambda line: "new session ticket keys are in use" in line)
