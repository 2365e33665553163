"""Whoever dies, hangs or meets an error: it is replaced, and everybody else goes on."""

from __future__ import annotations

import os
import re
import signal
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from botproxy.server.staff import HANGING
from tests.e2e.conftest import Start
from tests.e2e.served import Crowd
from tests.e2e.test_drain import Gate
from tests.harness import Bot, Proxied, free_port, status_of
from tests.wire import PATIENCE, HelloFor, get

FAULTS = Path(__file__).parent / "faults"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


@pytest.fixture
def fault_home() -> Iterator[Path]:
    """Where faults are ordered, also for workers of another account."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o777)
        yield home


PLACES = (
    "botproxy.server.reception:Reception._shake",
    "botproxy.http.h1:ClientConnection._serve_one",
    "botproxy.proxy:Proxy.handle",
    "botproxy.upstream.hold:Hold.connect",
    "botproxy.upstream.connection:UpstreamConnection.read_head",
    "botproxy.upstream.connection:UpstreamConnection.take_body",
    "botproxy.server.worker:Worker._log",
)
"""Where an error of ours may strike: from the first byte of a connection to the line in the log."""


def with_faults(home: Path, where: str = "") -> dict[str, str]:
    return {"PYTHONPATH": f"{FAULTS}:{ROOT}", "FAULT_HOME": str(home), "FAULT": where}


# Crashes


def test_what_queued_for_a_dead_worker_is_served_by_the_next(
    start: Start, bot: Bot, trust: ssl.SSLContext
) -> None:
    front = start(bot.url)
    (worker,) = front.workers()
    os.kill(worker, signal.SIGSTOP)
    with ExitStack() as stack:
        queued = []
        for _ in range(20):
            hello = HelloFor(trust)
            sock = stack.enter_context(front.tcp())
            sock.sendall(hello.data)
            queued.append((hello, sock))
        os.kill(worker, signal.SIGKILL)
        for hello, sock in queued:
            hello.finish(sock)
            assert b" 200 " in hello.exchange(sock, get())
    assert front.workers() != [worker]


def test_a_crash_loop_is_waited_out_longer_each_time_and_the_other_worker_serves(
    start: Start, bot: Bot, trust: ssl.SSLContext
) -> None:
    front = start(bot.url, workers=2, admin=None)
    steady, *_ = front.workers()
    delays = []
    mark = 0
    for _ in range(5):
        for worker in front.workers():
            if worker != steady:
                os.kill(worker, signal.SIGKILL)
        line = front.log.wait_for(lambda line: "a worker ended and is replaced" in line, mark)
        mark = front.log.lines.index(line) + 1
        found = re.search(r"in_seconds=([0-9.]+)", line)
        assert found is not None
        delays.append(float(found[1]))
        front.log.wait_for(lambda line: "a worker serves the certificates" in line, mark)
    assert delays[0] < 1
    assert delays == sorted(set(delays)), "each time longer"
    assert steady in front.workers()
    assert front.process.poll() is None


def test_while_a_worker_is_missing_health_says_so(start: Start, bot: Bot) -> None:
    front = start(bot.url, workers=2, admin=None)
    assert front.ask("/-/ready")["ready"]
    for _ in range(4):  # so that the next one is waited for
        mark = len(front.log.lines)
        os.kill(max(front.workers()), signal.SIGKILL)
        front.log.wait_for(lambda line: "a worker serves the certificates" in line, mark)
    mark = len(front.log.lines)
    os.kill(max(front.workers()), signal.SIGKILL)
    front.log.wait_for(lambda line: "a worker ended" in line, mark)
    deadline = time.monotonic() + PATIENCE
    while (answer := front.ask("/-/ready"))["ready"]:
        assert time.monotonic() < deadline, "nobody misses the worker"
    assert len(answer["workers"]) == 1


def test_without_its_supervisor_a_worker_answers_what_it_has_and_ends(
    start: Start, trust: ssl.SSLContext
) -> None:
    gate = Gate()
    with Bot(gate) as slow:
        front = start(slow.url, ends_with=-signal.SIGKILL)
        (worker,) = front.workers()
        with front.connect(trust) as client:
            client.send(get())
            assert gate.arrived.acquire(timeout=PATIENCE)
            front.process.kill()
            front.log.wait_for(lambda line: "the supervisor is gone" in line)
            gate.open.set()
            answer = client.read_message()
            assert (answer.status, answer.value("connection")) == (200, "close")
        deadline = time.monotonic() + PATIENCE
        while Path(f"/proc/{worker}").exists() and "Z" not in status_of(worker, "State"):
            assert time.monotonic() < deadline, "it lives on"
            time.sleep(0.02)


# Hanging


def test_a_worker_that_hangs_says_where_and_is_replaced(
    start: Start, bot: Bot, trust: ssl.SSLContext, fault_home: Path
) -> None:
    front = start(bot.url, workers=2, env=with_faults(fault_home))
    hanging, other = front.workers()
    os.kill(hanging, signal.SIGALRM)
    line = front.log.wait_for(lambda line: "a process hangs" in line)
    assert f"pid={hanging}" in line
    front.log.wait_for(lambda line: "hang_to_order" in line)
    front.log.wait_for(lambda line: "a worker ended and is replaced" in line and f"pid={hanging}" in line)
    with Crowd(front, trust, each=1) as crowd:
        crowd.wait_for(20)
    assert crowd.failures == []
    assert other in front.workers()
    assert hanging not in front.workers()


def test_a_stopped_keeper_is_replaced_as_well(start: Start, bot: Bot, trust: ssl.SSLContext) -> None:
    front = start(bot.url, admin=None)
    keeper = front.keeper
    os.kill(keeper, signal.SIGSTOP)
    front.log.wait_for(lambda line: "a process hangs" in line and f"pid={keeper}" in line)
    front.log.wait_for(lambda line: "the keeper ended" in line)
    with front.connect(trust) as client:
        assert client.request(get()).status == 200
    deadline = time.monotonic() + PATIENCE
    while front.keeper == keeper or not front.ask("/-/ready")["ready"]:
        assert time.monotonic() < deadline, "no keeper takes its place"


def test_a_pause_of_everybody_is_nobody_hanging(start: Start, bot: Bot, trust: ssl.SSLContext) -> None:
    """Ctrl-Z and fg, or a paused container: there was nobody to beat."""
    front = start(bot.url, admin=None, workers=2)
    before = front.children()
    everybody = [front.process.pid, *before]
    with front.connect(trust) as client:
        assert client.request(get()).status == 200
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(HANGING + 1.5)
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)
        mark = len(front.log.lines)
        os.kill(front.process.pid, signal.SIGHUP)
        front.log.wait_for(lambda line: "the configuration is the same" in line, mark)
        assert client.request(get()).status == 200
    assert front.children() == before


# Errors of ours


@pytest.mark.parametrize("where", PLACES)
def test_an_error_costs_one_connection(
    start: Start, bot: Bot, trust: ssl.SSLContext, fault_home: Path, where: str
) -> None:
    config = start(bot.url).config | {"listen": [f"127.0.0.1:{free_port()}"]}
    front = Proxied(config, fault_home, env=with_faults(fault_home, where))
    try:
        front.log.wait_for(lambda line: "msg=serving" in line)
        with front.connect(trust) as witness:
            assert witness.request(get()).status == 200
            (worker,) = front.workers()
            (fault_home / "armed").touch()
            try:
                with front.connect(trust) as victim:
                    victim.send(get())
                    answer = victim.read_message()
                    assert (answer.status, answer.complete) != (200, True) or where.endswith("_log")
            except (ssl.SSLError, ConnectionError):
                pass  # it ended before it was one
            front.log.wait_for(lambda line: "error=RuntimeError" in line and "faults/sitecustomize" in line)
            assert not (fault_home / "armed").exists()
            assert witness.request(get()).status == 200
        with front.connect(trust) as later:
            assert later.request(get()).status == 200
        assert front.workers() == [worker]
        deadline = time.monotonic() + PATIENCE
        while bot.open > 1:  # nothing of the victim is left, but at most one idle connection
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        front.stop()
        front.log.join()
        front.access.join()
