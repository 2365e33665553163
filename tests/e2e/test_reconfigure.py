"""A new configuration, while clients come and go: nobody notices, or nothing changes."""

from __future__ import annotations

import os
import signal
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.certs import Authority
from tests.cli.command import Ended, botproxy
from tests.e2e.conftest import Start
from tests.e2e.served import Crowd
from tests.e2e.test_websocket import HANDSHAKE, echo
from tests.harness import Bot, Proxied, eventually, free_port
from tests.wire import PATIENCE, Wire, get

CHANGED = "the new configuration is in use"
REFUSED = "the new configuration is refused, the old one stays"


@pytest.fixture(scope="module")
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


def write(front: Proxied, **changes: Any) -> None:
    """Change the configuration file."""
    front.config |= changes
    (front.directory / "botproxy.yaml").write_text(yaml.safe_dump(front.config))


def reload(front: Proxied) -> Ended:
    return botproxy("reload", "--admin", f"unix:{front.config['state_dir']}/admin.sock")


def change(front: Proxied, **changes: Any) -> None:
    """Change it, and have it taken over."""
    write(front, **changes)
    ended = reload(front)
    assert (ended.code, ended.out) == (0, f"{CHANGED}\n"), ended.err


def marked(value: str) -> dict[str, Any]:
    return {"set": {"X-Configured": value}}


def mark_of(front: Proxied, trust: ssl.SSLContext) -> str | None:
    with front.connect(trust) as client:
        values = client.request(get()).values("x-configured")
    return values[0] if values else None


def has_workers(front: Proxied, count: int) -> bool:
    return len(front.workers()) == count


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_sighup_has_the_new_one_served_and_no_client_fails(
    start: Start, bot: Bot, trust: ssl.SSLContext
) -> None:
    front = start(bot.url, workers=2, admin=None)
    before = set(front.children())
    with Crowd(front, trust) as crowd:
        for number in range(5):
            mark = len(front.log.lines)
            write(front, headers=marked(str(number)))
            front.process.send_signal(signal.SIGHUP)
            front.log.wait_for(lambda line: CHANGED in line, mark)
            assert {mark_of(front, trust) for _ in range(20)} == {str(number)}
            crowd.wait_for(5)
    assert crowd.failures == []
    eventually(lambda: all(gone(pid) for pid in before))
    assert sorted(front.children().values()) == ["botproxy-keeper", "botproxy-worker", "botproxy-worker"]
    assert front.ask("/-/ready")["ready"]


def test_workers_and_listeners_come_and_go_and_no_client_fails(
    start: Start, bot: Bot, trust: ssl.SSLContext
) -> None:
    front = start(bot.url, workers=2, admin=None)
    first, second = front.port, free_port()
    with Crowd(front, trust) as crowd:
        for workers in (4, 1, 3):
            change(front, workers=workers)
            eventually(partial(has_workers, front, workers))
            crowd.wait_for(20)
        change(front, listen=[f"127.0.0.1:{first}", f"127.0.0.1:{second}"])
        with Wire(trust.wrap_socket(front.tcp(second), server_hostname="localhost")) as client:
            assert client.request(get()).status == 200
        change(front, listen=[f"127.0.0.1:{first}"])
        with pytest.raises(ConnectionRefusedError):
            front.tcp(second)
        crowd.wait_for(20)
    assert crowd.failures == []


def test_a_wrong_one_changes_nothing_and_both_log_and_caller_hear_why(
    start: Start, bot: Bot, trust: ssl.SSLContext, ca: Authority, tmp_path: Path
) -> None:
    front = start(bot.url, admin=None, headers=marked("old"))
    before = front.children()
    good = dict(front.config)
    other = ca.issue("localhost").write(tmp_path, "other")
    with Bot() as occupant:
        for wrong, says in (
            ({"timeouts": {"drian": "3s"}}, "timeouts.drian"),
            ({"workers": 0}, "workers"),
            ({"state_dir": "/elsewhere"}, "state_dir: expected the value that it was started with"),
            ({"listen": [f"127.0.0.1:{occupant.port}"]}, "another program already listens"),
            ({"listen": [f"{'x' * 70}.test:8443"]}, "this is no name of a host"),
            ({"listen": ["fd:9"]}, "it was not open when botproxy was started"),
            ({"listen": ["fd:1"]}, "fd:1"),
            ({"certificates": [{"chain": other.chain, "key": "/does/not/exist"}]}, "does not exist"),
            (
                {"certificates": [{"chain": other.chain, "key": good["certificates"][0]["key"]}]},
                "belongs to another certificate",
            ),
        ):
            mark = len(front.log.lines)
            admin = f"unix:{front.config['state_dir']}/admin.sock"
            (front.directory / "botproxy.yaml").write_text(yaml.safe_dump(good | wrong))
            ended = botproxy("reload", "--admin", admin)
            assert ended.code == 2
            assert says in ended.err
            assert says in front.log.wait_for(lambda line: REFUSED in line, mark)
            assert mark_of(front, trust) == "old"
    (front.directory / "botproxy.yaml").unlink()
    ended = reload(front)
    assert ended.code == 2
    assert "botproxy.yaml" in ended.err
    eventually(lambda: front.children() == before)
    change(front, headers=marked("new"))
    assert mark_of(front, trust) == "new"


def test_the_same_one_leaves_everybody_where_he_is(start: Start, bot: Bot) -> None:
    front = start(bot.url, admin=None)
    before = front.children()
    ended = reload(front)
    assert ended.code == 0
    assert "the files hold what is served" in ended.out
    assert front.children() == before


def test_a_storm_is_one_change(start: Start, bot: Bot, trust: ssl.SSLContext) -> None:
    front = start(bot.url, admin=None)
    write(front, headers=marked("new"))
    mark = len(front.log.lines)
    for _ in range(100):
        front.process.send_signal(signal.SIGHUP)
    front.log.wait_for(lambda line: CHANGED in line, mark)
    assert mark_of(front, trust) == "new"
    assert reload(front).code == 0
    told = [line for line in front.log.lines[mark:] if CHANGED in line or "configuration is the same" in line]
    assert len(told) <= 4


def test_a_websocket_lives_on_until_the_deadline_of_its_worker(start: Start, trust: ssl.SSLContext) -> None:
    with Bot(echo) as bot:
        front = start(bot.url, admin=None, timeouts={"retire": "2s"})
        (worker,) = front.workers()
        with front.connect(trust) as tunnel:
            tunnel.send(get("/", *HANDSHAKE))
            assert b" 101 " in tunnel.read_until(b"\r\n\r\n")
            change(front, headers=marked("new"))
            tunnel.send(b"still there")
            assert tunnel.read_exactly(11) == b"still there"
            assert not gone(worker)
            assert tunnel.read_to_end()[0] == b""
        eventually(lambda: gone(worker))


def test_without_a_deadline_two_changes_may_drain_and_the_third_cuts(
    start: Start, trust: ssl.SSLContext
) -> None:
    with Bot(echo) as bot:
        front = start(bot.url, admin=None, timeouts={"retire": "unlimited"})
        tunnels = []
        for number in range(3):
            tunnel = front.connect(trust)
            tunnels.append(tunnel)
            tunnel.send(get("/", *HANDSHAKE))
            assert b" 101 " in tunnel.read_until(b"\r\n\r\n")
            if number < 2:
                change(front, headers=marked(str(number)))
        for tunnel in tunnels:
            tunnel.send(b"all three")
            assert tunnel.read_exactly(9) == b"all three"
        change(front, headers=marked("third"))
        assert tunnels[0].read_to_end()[0] == b""
        for tunnel in tunnels[1:]:
            tunnel.send(b"two")
            assert tunnel.read_exactly(3) == b"two"
        for tunnel in tunnels:
            tunnel.close()
        eventually(partial(has_workers, front, 1))


def test_new_processes_that_die_before_they_serve_leave_the_old_ones(
    start: Start, bot: Bot, trust: ssl.SSLContext
) -> None:
    front = start(bot.url, admin=None, headers=marked("old"))
    old = front.keeper
    with Crowd(front, trust) as crowd:
        write(front, headers=marked("new"))
        mark = len(front.log.lines)
        front.process.send_signal(signal.SIGHUP)

        def keepers() -> list[int]:
            return [pid for pid, name in front.children().items() if name == "botproxy-keeper" and pid != old]

        eventually(keepers)
        os.kill(keepers()[0], signal.SIGKILL)
        assert "keeper ended with -9" in front.log.wait_for(lambda line: REFUSED in line, mark)
        assert mark_of(front, trust) == "old"
        crowd.wait_for(10)
    assert crowd.failures == []
    assert front.keeper == old
    change(front, headers=marked("later"))
    assert mark_of(front, trust) == "later"


def test_an_idle_connection_may_bring_a_last_request(start: Start, bot: Bot, trust: ssl.SSLContext) -> None:
    front = start(bot.url, admin=None)
    with front.connect(trust) as busy, front.connect(trust) as idle:
        assert busy.request(get()).status == idle.request(get()).status == 200
        change(front, headers=marked("new"))
        answer = busy.request(get())
        assert (answer.status, answer.value("connection")) == (200, "close")
        assert busy.read_to_end() == (b"", True)
        assert idle.read_to_end() == (b"", True), "in order, and long before the deadline"


def test_a_refused_one_costs_no_client_of_listeners_that_were_to_come(
    start: Start, bot: Bot, trust: ssl.SSLContext
) -> None:
    """What is queued where nobody comes to accept after all would be lost."""
    front = start(bot.url, admin=None, workers=1, listen=[f":{free_port()}"])
    missing = [{"chain": "/does/not/exist", "key": "/does/not/exist"}]
    good = dict(front.config)
    with Crowd(front, trust, each=4) as crowd:
        for wrong in ({"workers": 4}, {"listen": [f"127.0.0.1:{front.port}"]}):
            for _ in range(3):
                front.config = good | {"certificates": missing} | wrong
                write(front)
                assert reload(front).code == 2
                crowd.wait_for(10)
    assert crowd.failures == []


def test_changes_do_not_put_off_new_ticket_keys(start: Start, bot: Bot) -> None:
    front = start(bot.url, admin=None, workers=1, tls={"ticket_rotation": "3s"})
    mark = len(front.log.lines)
    began = time.monotonic()
    number = 0
    while not any("new session ticket keys are in use" in line for line in front.log.lines[mark:]):
        assert time.monotonic() - began < PATIENCE
        change(front, headers=marked(str(number := number + 1)))


def test_a_change_under_way_is_not_answered_by_an_upgrade_that_fails(
    start: Start, bot: Bot, trust: ssl.SSLContext
) -> None:
    front = start(bot.url, admin=None)
    file = front.directory / "botproxy.yaml"
    for number in range(5):
        write(front, headers=marked(str(number)))
        mark = len(front.log.lines)
        with ThreadPoolExecutor() as asking:
            answer = asking.submit(front.ask, "/-/reconfigure", "POST")
            front.log.wait_for(lambda line: "certificates are loaded" in line, mark)
            good = file.read_text()
            file.write_text("no: yaml: at all")
            front.process.send_signal(signal.SIGUSR2)
            assert answer.result() == {"changed": True, "problems": []}
        assert mark_of(front, trust) == str(number)
        front.log.wait_for(lambda line: "before it served" in line, mark)
        file.write_text(good)
