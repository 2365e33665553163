"""The clean client: someone with every right to an answer, while others attack.

From an address of its own, at a constant rate, in two ways at the same time: a new
connection for each request, and one connection kept for many. Certificate, status and body
are looked at. The time of a request counts from when it was due, so that one that had to
wait for the one before is not let off.

Run by `Clean`: `python -m tests.attacks.clean PORT CA RATE`: one line of JSON for each
request, until SIGTERM.
"""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal, Self

from tests.wire import Wire, get

ADDRESS = "127.0.0.2"
"""Where it comes from: limits that hold for an attacker's address are not its own."""
TARGET = "/clean"
_LATE = 20.0
"""Seconds until a request has failed."""

Way = Literal["new", "kept"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One request."""

    way: Way
    due: float
    """Monotonic, which all processes of a machine share."""
    seconds: float
    failure: str = ""


class Clean:
    """Starts it and collects what it met."""

    def __init__(self, port: int, ca: Path, rate: float) -> None:
        """`rate`: requests a second, both ways together."""
        self.samples: list[Sample] = []
        self._changed = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks.clean", str(port), str(ca), str(rate)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def wait(self, more: int) -> None:
        """Until `more` further requests are over."""
        wanted = len(self.samples) + more
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.samples) >= wanted, _LATE), "the client hangs"

    def between(self, begin: float, end: float) -> list[Sample]:
        """Those that were due then."""
        return [sample for sample in list(self.samples) if begin <= sample.due < end]

    @property
    def failures(self) -> list[Sample]:
        return [sample for sample in list(self.samples) if sample.failure]

    def stop(self) -> None:
        """Let it finish what it has begun."""
        early = self._process.poll() is not None
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        assert not early, "the clean client ended before it was told to"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._changed:
                self.samples.append(Sample(**json.loads(line)))
                self._changed.notify_all()
        stream.close()


# The process


class _Client:
    def __init__(self, port: int, ca: str) -> None:
        self._port = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.load_verify_locations(ca)
        self._kept: Wire | None = None

    def new(self) -> None:
        with self._connect() as wire:
            self._ask(wire, get(TARGET, "Connection: close"))

    def kept(self) -> None:
        wire, self._kept = self._kept or self._connect(), None
        if self._ask(wire, get(TARGET)):
            wire.close()  # it was announced as the last
        else:
            self._kept = wire

    def _connect(self) -> Wire:
        sock = socket.create_connection(("127.0.0.1", self._port), _LATE, source_address=(ADDRESS, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Wire(self._context.wrap_socket(sock, server_hostname="localhost"))

    def _ask(self, wire: Wire, request: bytes) -> bool:
        """Whether this was the last answer of the connection."""
        answer = wire.request(request)
        if answer.status != 200 or answer.body != b"ok" or not answer.complete:
            raise ValueError(f"{answer.start!r} with {answer.body!r}")
        return "close" in answer.values("connection")


def _repeat(way: Way, ask: Callable[[], None], pause: float, stopped: threading.Event) -> None:
    due = time.monotonic()
    while not stopped.wait(max(0.0, due - time.monotonic())):
        failure = ""
        try:
            ask()
        except (OSError, ValueError) as error:
            failure = f"{type(error).__name__}: {error}"
        sample = Sample(way, due, time.monotonic() - due, failure)
        sys.stdout.write(json.dumps(asdict(sample)) + "\n")
        sys.stdout.flush()
        due += pause


def _main(port: int, ca: str, rate: float) -> None:
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    client = _Client(port, ca)
    ways: tuple[tuple[Way, Callable[[], None]], ...] = (("kept", client.kept), ("new", client.new))
    threads = []
    for way, ask in ways:
        thread = threading.Thread(target=_repeat, args=(way, ask, 2 / rate, stopped))
        thread.start()
        threads.append(thread)
        stopped.wait(1 / rate)  # the one between two of the other
    for thread in threads:
        while thread.is_alive():
            thread.join(0.1)  # a signal is heard between two waits


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
