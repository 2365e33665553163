"""Rows of the fault table about our own processes: they die, hang, err, stop and change."""

from __future__ import annotations

import os
import re
import signal
import ssl
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.e2e.test_drain import Gate
from tests.e2e.test_life import PLACES, with_faults
from tests.e2e.test_reconfigure import CHANGED, REFUSED, change, gone, marked, write
from tests.e2e.test_websocket import HANDSHAKE, echo
from tests.faults.conftest import Checked
from tests.harness import Bot, Proxied, eventually
from tests.wire import OK, PATIENCE, Wire, get

RELOADS = 50


def slow(wire: Wire) -> None:
    """A tenth of a second for each answer, so that some are always under way."""
    while wire.read_message().head:
        threading.Event().wait(0.1)
        wire.send(OK)


def test_row_12(start: Start, healthy: Bot, checked: Checked) -> None:
    """SIGKILL of a worker under load."""
    front = start(healthy.url, workers=2)
    healthy.behave(slow)
    with checked(front, path="/") as checker:
        victim, other = front.workers()
        checker.grant_connections_at(time.monotonic())
        os.kill(victim, signal.SIGKILL)
        line = front.log.wait_for(lambda line: "a worker ended and is replaced" in line)
        assert f"pid={victim}" in line
        assert "in_seconds=0.1" in line
        front.log.wait_for(lambda line: "a worker serves the certificates" in line, since_index(front, line))
        checker.wait_for(50)
        assert other in front.workers()


def since_index(front: Proxied, line: str) -> int:
    return front.log.lines.index(line) + 1


def test_row_13(start: Start, healthy: Bot, checked: Checked, fault_home: Path) -> None:
    """A worker that blocks in a call of its own."""
    front = start(healthy.url, workers=2, env=with_faults(fault_home))
    with checked(front, path="/") as checker:
        victim, other = front.workers()
        checker.grant_connections_at(time.monotonic())
        os.kill(victim, signal.SIGALRM)
        line = front.log.wait_for(lambda line: "a process hangs" in line)
        assert f"pid={victim}" in line
        front.log.wait_for(lambda line: "hang_to_order" in line)
        front.log.wait_for(lambda line: "a worker ended and is replaced" in line)
        checker.wait_for(50)
        assert other in front.workers()
        assert victim not in front.workers()


def test_row_14(start: Start, healthy: Bot, checked: Checked) -> None:
    """A worker that dies again and again."""
    front = start(healthy.url, workers=2, admin=None)
    steady, *_ = front.workers()
    delays: list[float] = []
    with checked(front, path="/") as checker:
        mark = 0
        for _ in range(5):
            for worker in front.workers():
                if worker != steady:
                    os.kill(worker, signal.SIGKILL)
                    checker.grant_connections_at(time.monotonic())
            line = front.log.wait_for(lambda line: "a worker ended and is replaced" in line, mark)
            mark = since_index(front, line)
            if len(delays) == 4:
                eventually(lambda: not front.ask("/-/ready")["ready"])
            found = re.search(r"in_seconds=([0-9.]+)", line)
            assert found is not None
            delays.append(float(found[1]))
            front.log.wait_for(lambda line: "a worker serves the certificates" in line, mark)
        assert delays == sorted(set(delays)), "each time longer"
        assert front.process.poll() is None
        assert steady in front.workers()
        checker.wait_for(50)


def test_row_15(start: Start, healthy: Bot, checked: Checked, unused_port: int) -> None:
    """SIGKILL of the supervisor."""
    listen = [f"127.0.0.1:{unused_port}"]
    front = start(healthy.url, workers=2, listen=listen, ends_with=-signal.SIGKILL)
    children = set(front.children())
    healthy.behave(slow)
    with checked(front, path="/") as checker:
        killed = time.monotonic()
        front.process.kill()
        front.wait()
        eventually(lambda: all(gone(pid) for pid in children))
        again = start(healthy.url, workers=2, listen=listen)
        checker.grant_between(killed, time.monotonic())
        checker.wait_for(50)
        assert len(again.workers()) == 2


def test_row_16(start: Start, healthy: Bot, checked: Checked, trust: ssl.SSLContext) -> None:
    """SIGTERM under load, and a second one."""
    front = start(healthy.url, workers=2, timeouts={"drain": "25s"})
    healthy.behave(slow)
    with checked(front, path="/") as checker:
        checker.wait_for(20)
        told = time.monotonic()
        front.terminate()
        assert front.wait() == 0
        checker.grant_between(told, time.monotonic() + PATIENCE)
    gate = Gate()
    with Bot(gate) as stuck:
        front = start(stuck.url, timeouts={"drain": "60s"})
        with front.connect(trust) as client:
            client.send(get())
            assert gate.arrived.acquire(timeout=PATIENCE)
            front.terminate()
            front.log.wait_for(lambda line: "stopping" in line)
            front.terminate()
            assert client.read_to_end() == (b"", False)
            assert front.wait() == 0
        gate.open.set()


def test_row_17(front_of: Start, checked: Checked, trust: ssl.SSLContext) -> None:
    """Reloads under load, one of them wrong; WebSockets go on in workers that retire."""
    with Bot(echo) as bot, ExitStack() as stack:
        front = front_of(bot.url, workers=2, admin=None, timeouts={"retire": "unlimited"})
        with checked(front) as checker:
            good = dict(front.config)
            mark = len(front.log.lines)
            write(front, workers=0)
            front.process.send_signal(signal.SIGHUP)
            front.log.wait_for(lambda line: REFUSED in line, mark)
            write(front, **good)
            for number in range(RELOADS):
                tunnel = stack.enter_context(front.connect(trust))
                tunnel.send(get("/", *HANDSHAKE))
                assert b" 101 " in tunnel.read_until(b"\r\n\r\n")
                mark = len(front.log.lines)
                write(front, headers=marked(str(number)))
                front.process.send_signal(signal.SIGHUP)
                front.log.wait_for(lambda line: CHANGED in line, mark)
                tunnel.send(b"still there")
                assert tunnel.read_exactly(11) == b"still there"
            checker.wait_for(50)


def test_row_18(front_of: Start, checked: Checked, trust: ssl.SSLContext) -> None:
    """A storm of reloads, while earlier workers cannot end."""
    with Bot(echo) as bot, ExitStack() as stack:
        front = front_of(bot.url, admin=None, timeouts={"retire": "unlimited"})
        with checked(front) as checker:
            for number in range(4):
                tunnel = stack.enter_context(front.connect(trust))
                tunnel.send(get("/", *HANDSHAKE))
                assert b" 101 " in tunnel.read_until(b"\r\n\r\n")
                mark = len(front.log.lines)
                write(front, headers=marked(str(number)))
                for _ in range(100):
                    front.process.send_signal(signal.SIGHUP)
                front.log.wait_for(lambda line: CHANGED in line, mark)
            eventually(lambda: len(front.workers()) <= 3)  # the one that serves, and two that drain
            change(front, headers=marked("last"))  # after it no wish is left over
            said = [
                line for line in front.log.lines if CHANGED in line or "configuration is the same" in line
            ]
            assert len(said) <= 4 * 4
            checker.wait_for(50)


@pytest.mark.parametrize("where", PLACES)
def test_row_32(config: dict[str, Any], checked: Checked, fault_home: Path, where: str) -> None:
    """An error of ours, whoever it meets."""
    front = Proxied(config, fault_home, env=with_faults(fault_home, where))
    try:
        front.wait_ready()
        (worker,) = front.workers()
        with checked(front, path="/") as checker:
            checker.grant(1)
            (fault_home / "armed").touch()
            front.log.wait_for(lambda line: "error=RuntimeError" in line and "sitecustomize" in line)
            checker.wait_for(10)
        assert front.workers() == [worker]
    finally:
        front.stop()
        front.log.join()
        front.access.join()


def test_row_33(front_of: Start, checked: Checked, trust: ssl.SSLContext) -> None:
    """A worker that stands still for longer than a deadline is away."""
    arrived, resumed = threading.Event(), threading.Event()

    def behave(wire: Wire) -> None:
        while wire.read_message().head:
            arrived.set()
            assert resumed.wait(PATIENCE)
            wire.send(OK)

    with Bot(behave) as bot:
        front = front_of(bot.url, admin=None, timeouts={"response": "500ms"})
        (worker,) = front.workers()
        with checked(front) as checker, front.connect(trust) as client:
            for _ in range(5):
                arrived.clear()
                resumed.clear()
                client.send(get())
                assert arrived.wait(PATIENCE)
                os.kill(worker, signal.SIGSTOP)
                try:
                    resumed.set()  # the answer is there in time; who should read it is not
                    threading.Event().wait(0.8)
                finally:
                    os.kill(worker, signal.SIGCONT)
                assert client.read_message().status == 200
            checker.wait_for(25)
        (told,) = front.ask("/-/ready")["workers"]
        assert "lag_ms" in told
