"""A worker that grows too large is replaced, and what it had begun is finished."""

from __future__ import annotations

import os
import signal
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import Start
from tests.e2e.served import Crowd
from tests.harness import Bot, eventually
from tests.wire import PATIENCE, get

LARGE_HEADS = 40


@pytest.fixture(scope="module")
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


def test_at_the_limit_another_worker_takes_over(start: Start, bot: Bot, trust: ssl.SSLContext) -> None:
    limits = {"memory": "64MiB", "head": "1MiB", "fields": 10_000}
    front = start(bot.url, limits=limits, timeouts={"head": "30s"}, upstream={"reuse": "never"})
    (large,) = front.workers()
    line = b"X-Large: " + b"x" * 1000 + b"\r\n"
    with ExitStack() as stack:
        idle = stack.enter_context(front.connect(trust))
        assert idle.request(get()).status == 200
        growing = [stack.enter_context(front.connect(trust)) for _ in range(LARGE_HEADS)]
        for client in growing:
            client.send(get()[:-2] + line * 900)
        front.log.wait_for(lambda line: "limits.memory is reached" in line)
        assert idle.read_to_end() == (b"", True)
        with Crowd(front, trust, each=1) as crowd:
            crowd.wait_for(20)
        assert crowd.failures == []
        front.log.wait_for(
            lambda line: "a worker serves the certificates" in line and f"={large} " not in line
        )
        deadline = time.monotonic() + PATIENCE
        while large in front.workers() and len(front.workers()) == 1:
            assert time.monotonic() < deadline, "nobody takes over"
            time.sleep(0.02)
        for client in growing[:5]:
            client.send(b"\r\n")
            answer = client.read_message()
            assert answer.value("connection") == "close"
    assert front.process.poll() is None


def test_how_late_and_how_large_a_worker_is_can_be_asked(start: Start, bot: Bot) -> None:
    front = start(bot.url, admin=None)
    (worker,) = front.workers()

    def told() -> dict[str, float]:
        (found,) = front.ask("/-/ready")["workers"]
        assert found["pid"] == worker
        return dict(found)

    deadline = time.monotonic() + PATIENCE
    while "lag_ms" not in told():
        assert time.monotonic() < deadline
    assert 10 < told()["memory_mib"] < 500
    os.kill(worker, signal.SIGSTOP)
    stopped = time.monotonic()
    while time.monotonic() - stopped < 2:
        time.sleep(0.1)  # for as long as it shall be late
    os.kill(worker, signal.SIGCONT)
    while told()["lag_ms"] < 500:
        assert time.monotonic() < deadline, "it was not noticed"


def test_what_reads_the_configuration_is_in_nobodys_memory(start: Start, bot: Bot) -> None:
    """A sixth of what all take together, needed only while it is read."""
    front = start(bot.url, admin=None)

    def check() -> None:
        for pid in (front.process.pid, *front.children()):
            mapped = Path(f"/proc/{pid}/maps").read_text()
            assert "pydantic" not in mapped
            assert "_yaml" not in mapped
            assert "_ssl" in mapped, "this is no process of ours"

    check()
    before = front.children()
    front.config["log"] = {"level": "debug"}
    (front.directory / "botproxy.yaml").write_text(yaml.safe_dump(front.config))
    front.process.send_signal(signal.SIGHUP)
    front.log.wait_for(lambda line: "the new configuration is in use" in line)
    eventually(lambda: not before.keys() & front.children().keys())
    check()
