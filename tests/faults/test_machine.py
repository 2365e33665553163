"""Rows of the fault table about the machine: disk, descriptors, memory, clock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.conftest import Start
from tests.e2e.test_deaths import FAKETIME
from tests.e2e.test_limits import highest_descriptor, hold_open
from tests.faults.conftest import Checked
from tests.harness import Bot, limit_descriptors, program
from tests.wire import PATIENCE, get


class Sunk:
    """botproxy with both logs going to `sink`."""

    def __init__(self, config: dict[str, Any], directory: Path, sink: int) -> None:
        if os.geteuid() == 0:
            config["user"] = "nobody"
        self.port = int(config["listen"][0].rpartition(":")[2])
        file = directory / "botproxy.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "botproxy", "serve", "--config", str(file)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)

    def wait_listening(self) -> None:
        """Whoever comes from now on is served."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except ConnectionRefusedError:
                pass  # not yet
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)


@contextlib.contextmanager
def sunk(config: dict[str, Any], directory: Path, sink: int) -> Iterator[Sunk]:
    one = Sunk(config, directory, sink)
    try:
        one.wait_listening()
        yield one
    finally:
        one.process.terminate()
        assert one.process.wait(PATIENCE) == 0


def test_row_25_full(config: dict[str, Any], checked: Checked, open_directory: Path) -> None:
    """No room for a line of any log."""
    sink = os.open("/dev/full", os.O_WRONLY)
    try:
        with sunk(config, open_directory, sink) as front, checked(front, path="/") as checker:
            checker.wait_for(75)
    finally:
        os.close(sink)


def test_row_25_closed(config: dict[str, Any], checked: Checked, open_directory: Path) -> None:
    """Nobody reads the logs any more; later somebody does again."""
    fifo = open_directory / "logs"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    sink = os.open(fifo, os.O_WRONLY)
    try:
        with sunk(config, open_directory, sink) as front, checked(front, path="/") as checker:
            os.close(reader)
            checker.wait_for(75)
            reader = os.open(fifo, os.O_RDONLY)
            with open(reader, closefd=False) as lines:
                told = next(line for line in lines if '"lines_lost"' in line)
            assert json.loads(told)["count"] > 25
            checker.wait_for(10)
    finally:
        os.close(sink)
        os.close(reader)


def test_row_25_stalled(config: dict[str, Any], checked: Checked, open_directory: Path) -> None:
    """Whoever reads the logs stands still."""
    reader, sink = os.pipe()
    fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, 4096)
    try:
        os.set_blocking(sink, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(sink, b"x" * 100 + b"\n")
        os.set_blocking(sink, True)
        with sunk(config, open_directory, sink) as front, checked(front, path="/") as checker:
            checker.wait_for(75)
    finally:
        os.close(reader)
        os.close(sink)


def test_row_26(start: Start, healthy: Bot, checked: Checked, trust: ssl.SSLContext) -> None:
    """Descriptors run out for a moment, though the number of connections was lowered so that they cannot."""
    front = start(healthy.url, upstream={"reuse": "never"}, limits={"connections_per_address": 4000})
    (worker,) = front.workers()
    usual = int(Path(f"/proc/{worker}/limits").read_text().partition("Max open files")[2].split()[0])
    with ExitStack() as stack:
        idle = hold_open(stack, front, trust, 20)
        with checked(front, path="/", kept=0) as checker:
            for _ in range(3):
                mark = len(front.log.lines)
                limit_descriptors(worker, highest_descriptor(worker) + 1)
                held = [stack.enter_context(front.tcp()) for _ in range(40)]
                front.log.wait_for(lambda line: "no file descriptors left" in line, mark)
                for sock in held:
                    sock.close()
                limit_descriptors(worker, usual)
                front.log.wait_for(lambda line: "accepting again" in line, mark)
                checker.wait_for(10)
        assert any(client.has_more(0.01) for client in idle), "idle ones make room"
    assert front.workers() == [worker]


def test_row_27(start: Start, healthy: Bot, checked: Checked, trust: ssl.SSLContext) -> None:
    """A worker needs more memory than it may have."""
    limits = {"memory": "64MiB", "head": "1MiB", "fields": 10_000}
    front = start(healthy.url, limits=limits, timeouts={"head": "30s"})
    (large,) = front.workers()
    line = b"X-Large: " + b"x" * 1000 + b"\r\n"
    with ExitStack() as stack, checked(front, path="/") as checker:
        growing = [stack.enter_context(front.connect(trust)) for _ in range(40)]
        for client in growing:
            client.send(get()[:-2] + line * 900)
        front.log.wait_for(lambda line: "limits.memory is reached" in line)
        front.log.wait_for(
            lambda line: "a worker serves the certificates" in line and f"={large} " not in line
        )
        checker.wait_for(50)
        growing[0].send(b"\r\n")
        assert growing[0].read_message().status in (200, 502)  # what was begun is finished
    assert front.process.poll() is None


def test_row_28(
    start: Start, healthy: Bot, checked: Checked, trust: ssl.SSLContext, open_directory: Path
) -> None:
    """The clock jumps by a day, forth and back."""
    if FAKETIME is None:
        program("libfaketime")  # skips
    clock = open_directory / "clock"
    clock.write_text("+0d")
    front = start(
        healthy.url,
        workers=2,
        env={
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        },
    )
    with checked(front, path="/") as checker, front.connect(trust) as client:
        for offset, days in (("+1d", 1), ("-1d", -1), ("+0d", 0)):
            clock.write_text(offset)
            checker.wait_for(25)
            date = parsedate_to_datetime(client.request(get()).value("date")).timestamp()
            assert abs(date - time.time() - days * 86400) < 60
