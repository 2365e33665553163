"""A configuration that is being read again, by a process that may be told anything and may die."""

from __future__ import annotations

import os
import signal
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import Start
from tests.e2e.test_reconfigure import CHANGED, REFUSED
from tests.harness import Bot, Proxied, descriptors_of, eventually, limit_descriptors
from tests.wire import PATIENCE, get

READER = "botproxy-reader"


@pytest.fixture(scope="module")
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


class Slow:
    """The configuration file of `front` as a pipe: who reads it waits until `give`, for two seconds."""

    def __init__(self, front: Proxied) -> None:
        self._front = front
        self._file = front.directory / "botproxy.yaml"
        self._file.unlink()
        os.mkfifo(self._file)

    def reader(self) -> int:
        """The process that waits; there is one in the end."""
        front = self._front
        front.process.send_signal(signal.SIGHUP)
        eventually(lambda: READER in front.children().values())
        return next(pid for pid, name in front.children().items() if name == READER)

    def give(self, **changes: object) -> None:
        self._front.config |= changes
        self._file.write_text(yaml.safe_dump(self._front.config))

    def end(self) -> None:
        self._file.unlink()
        self._file.write_text(yaml.safe_dump(self._front.config))


@pytest.fixture
def front(start: Start, bot: Bot) -> Proxied:
    return start(bot.url, admin=None)


def test_what_the_whole_group_is_told_does_not_end_it(front: Proxied, trust: ssl.SSLContext) -> None:
    slow = Slow(front)
    reader = slow.reader()
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGQUIT):
        os.kill(reader, number)
    slow.give(headers={"set": {"X-Configured": "again"}})
    front.log.wait_for(lambda line: CHANGED in line)
    with front.connect(trust) as client:
        assert client.request(get()).value("x-configured") == "again"


def test_one_that_is_killed_changes_nothing_and_the_next_does(front: Proxied, trust: ssl.SSLContext) -> None:
    slow = Slow(front)
    os.kill(slow.reader(), signal.SIGKILL)
    line = front.log.wait_for(lambda line: REFUSED in line)
    assert "was ended by signal 9" in line
    with front.connect(trust) as client:
        assert client.request(get()).status == 200
    slow.end()
    front.process.send_signal(signal.SIGHUP)
    front.log.wait_for(lambda line: "the configuration is the same" in line)


def test_a_machine_without_room_for_it_changes_nothing(front: Proxied, trust: ssl.SSLContext) -> None:
    limit_descriptors(front.process.pid, descriptors_of(front.process.pid))
    front.process.send_signal(signal.SIGHUP)
    line = front.log.wait_for(lambda line: REFUSED in line)
    assert "Too many open files" in line
    with front.connect(trust) as client:
        assert client.request(get()).status == 200
    limit_descriptors(front.process.pid, 1024)
    front.process.send_signal(signal.SIGHUP)
    front.log.wait_for(lambda line: "the configuration is the same" in line)


def test_nobody_waits_for_it_at_a_stop(front: Proxied) -> None:
    reader = Slow(front).reader()
    os.kill(reader, signal.SIGSTOP)
    began = time.monotonic()
    front.process.send_signal(signal.SIGTERM)
    assert front.wait() == 0
    assert time.monotonic() - began < PATIENCE
    assert not Path(f"/proc/{reader}").exists()


def test_it_holds_nothing_by_which_others_see_that_the_supervisor_is_gone(start: Start, bot: Bot) -> None:
    front = start(bot.url, admin=None, ends_with=-signal.SIGKILL)
    reader = Slow(front).reader()
    os.kill(reader, signal.SIGSTOP)
    try:
        others = set(front.children()) - {reader}
        front.process.kill()
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in others))
        with pytest.raises(ConnectionRefusedError):
            front.tcp()
    finally:
        os.kill(reader, signal.SIGKILL)
