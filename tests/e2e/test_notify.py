"""A service manager hears how we are: on a real socket, of either kind."""

from __future__ import annotations

import os
import select
import signal
import socket
import ssl
import statistics
import struct
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from botproxy.config import schema
from tests.cli.command import ACCOUNT, serving
from tests.e2e.conftest import Start
from tests.e2e.test_drain import Gate
from tests.harness import Bot, Proxied
from tests.wire import PATIENCE, get


class Manager:
    """The socket of a service manager."""

    def __init__(self, address: str) -> None:
        self.env = {"NOTIFY_SOCKET": address}
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self._sock.settimeout(PATIENCE)
        self.sender = 0
        """Who told the last message."""

    def next(self) -> dict[str, str]:
        """What is told next."""
        data, about, _, _ = self._sock.recvmsg(4096, 256)
        self.sender = struct.unpack("3i", about[0][2][:12])[0]
        return dict(line.split("=", 1) for line in data.decode().split("\n"))

    def has_more(self) -> bool:
        return bool(select.select([self._sock], [], [], 0.0)[0])

    def close(self) -> None:
        self._sock.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, open_directory: Path) -> Iterator[Manager]:
    name = f"@botproxy-test-{os.getpid()}"
    made = Manager(str(open_directory / "notify") if request.param == "path" else name)
    yield made
    made.close()


@pytest.fixture
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


def write(front: Proxied, **changes: object) -> None:
    (front.directory / "botproxy.yaml").write_text(yaml.safe_dump(front.config | changes))


def test_ready_is_told_when_everything_serves_and_stopping_when_it_begins(
    start: Start, manager: Manager, trust: ssl.SSLContext
) -> None:
    gate = Gate()
    with Bot(gate) as bot:
        front = start(bot.url, workers=2, env=manager.env)
        assert manager.next() == {"READY": "1", "STATUS": "serving with 2 of 2 workers"}
        assert manager.sender == front.process.pid
        with front.connect(trust) as wire:
            wire.send(get())
            assert gate.arrived.acquire(timeout=PATIENCE)
            front.terminate()
            assert manager.next() == {"STOPPING": "1", "STATUS": "stopping"}
            gate.open.set()
            assert wire.read_message().status == 200
        assert front.wait() == 0
    assert not manager.has_more()


def test_a_start_that_fails_is_never_ready(start: Start, manager: Manager, bot: Bot) -> None:
    with pytest.raises(AssertionError, match="the process ended first"):
        start(bot.url, certificates=[{"chain": "/nonexistent", "key": "/nonexistent"}], env=manager.env)
    told = [manager.next()]
    while manager.has_more():
        told.append(manager.next())
    assert all("READY" not in message for message in told), told


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "the configuration is the same"),
        ({"headers": {"preset": "web"}}, "the new configuration is in use"),
        ({"headers": {"preset": "wep"}}, "refused"),
        ({"certificates": [{"chain": "/nonexistent", "key": "/nonexistent"}]}, "refused"),
    ],
    ids=["unchanged", "changed", "wrong", "unservable"],
)
def test_a_reload_is_told_from_its_begin_to_its_end_however_it_ends(
    start: Start, manager: Manager, bot: Bot, change: dict[str, object], says: str
) -> None:
    front = start(bot.url, env=manager.env)
    assert "READY" in manager.next()
    write(front, **change)
    before = time.monotonic_ns() // 1000
    front.process.send_signal(signal.SIGHUP)
    told = manager.next()
    assert (told["RELOADING"], told["STATUS"]) == ("1", "reloading")
    # systemd takes what is not from after its request for an older reload.
    assert before <= int(told["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert manager.next() == {"READY": "1", "STATUS": "serving with 1 of 1 workers"}
    front.log.wait_for(lambda line: says in line)


def test_the_watchdog_is_fed_twice_as_often_as_it_must_be(start: Start, manager: Manager, bot: Bot) -> None:
    start(bot.url, env=manager.env | {"WATCHDOG_USEC": "1000000"})
    assert "READY" in manager.next()
    times: list[float] = []
    while len(times) < 6:
        assert manager.next() == {"WATCHDOG": "1"}
        times.append(time.monotonic())
    gaps = [after - before for before, after in pairwise(times)]
    assert statistics.median(gaps) == pytest.approx(0.5, abs=0.2), gaps


def test_the_watchdog_of_another_process_is_not_ours(start: Start, manager: Manager, bot: Bot) -> None:
    front = start(bot.url, env=manager.env | {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"})
    assert "READY" in manager.next()
    front.process.send_signal(signal.SIGHUP)
    assert "RELOADING" in manager.next()
    assert "READY" in manager.next()


def test_the_status_says_how_many_workers_serve(start: Start, manager: Manager, bot: Bot) -> None:
    front = start(bot.url, workers=2, env=manager.env)
    assert "READY" in manager.next()
    os.kill(front.workers()[0], signal.SIGKILL)
    assert manager.next() == {"STATUS": "serving with 1 of 2 workers"}
    assert manager.next() == {"STATUS": "serving with 2 of 2 workers"}


def test_a_successor_is_the_service_from_the_moment_it_serves(
    start: Start, manager: Manager, bot: Bot, trust: ssl.SSLContext
) -> None:
    front = start(bot.url, env=manager.env)
    assert "READY" in manager.next()
    front.process.send_signal(signal.SIGUSR2)
    # The successor itself is not believed before it is named.
    assert manager.next() == {"READY": "1", "STATUS": "serving with 1 of 1 workers"}
    successor = manager.sender
    try:
        told = manager.next()
        assert manager.sender == front.process.pid
        assert told == {"MAINPID": str(successor), "READY": "1", "STATUS": "serving with 1 of 1 workers"}
        assert front.wait() == 0
        with front.connect(trust) as wire:
            assert wire.request(get()).status == 200
        os.kill(successor, signal.SIGTERM)
        assert manager.next() == {"STOPPING": "1", "STATUS": "stopping"}
        assert manager.sender == successor
    finally:
        fd = os.pidfd_open(successor) if Path(f"/proc/{successor}").exists() else None
        if fd is not None:
            assert select.select([fd], [], [], PATIENCE)[0]
            os.close(fd)


def test_the_bot_of_run_is_told_nothing_of_the_manager(
    manager: Manager, site: schema.Certificate, open_directory: Path
) -> None:
    env = manager.env | {"WATCHDOG_USEC": "2000000", "BOT_TOKEN": "1:a"}
    arguments = ["--cert", site.chain, "--key", site.key, "--to", "http://127.0.0.1:9", *ACCOUNT]
    addresses = ["--listen", "127.0.0.1:0", "--plain-listen", "off", "--workers", "1"]
    state = ["--state-dir", str(open_directory / "state")]
    command = ["sh", "-c", "env; echo the end; exec sleep 1000"]
    with serving("run", *arguments, *addresses, *state, "--", *command, env=env) as run:
        run.read_out("the end")
        assert "BOT_TOKEN=1:a" in run.out
        assert "NOTIFY_SOCKET" not in run.out
        assert "WATCHDOG" not in run.out
        assert "READY" in manager.next()
        assert manager.sender == run.process.pid
        run.end(signal.SIGTERM)
