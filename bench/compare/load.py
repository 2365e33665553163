"""The load generator: one process on a core of its own that does as it is told.

An order is a line of JSON on its standard input. It prepares (opens what must be open,
gets the session that is to be resumed), says so, waits for the word, works for the given
time, and reports as a line of JSON: how many operations, how long each took, what the
handshakes were, how connections ended, and every error. `Load` is its other end.

Run by `Load` as `python -m bench.compare.load`. It offers one suite of TLS 1.3 only, which
Python cannot say and OpenSSL's configuration (`openssl.cnf`) can.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from bench.compare import client
from bench.compare.cases import BY_NAME, FRESH
from bench.compare.client import Client, Tls
from bench.compare.loop import Loop, Steps
from bench.compare.tls13 import Session, Tls13

AT_ONCE = 32
"""Connections that are being opened."""
PATIENCE = 4.0
"""Seconds in which nothing at all happens, after which a peer is stuck."""
KEPT_ERRORS = 5
IDLE_FOR_EACH_ADDRESS = 100
"""botproxy has a limit of 256 connections for each address by default, and two orders may be idle at once."""
CONFIGURATION = Path(__file__).parent / "openssl.cnf"


class LoadError(Exception):
    """The load could not be brought about; says why."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done."""

    case: str
    port: int
    fullchain: str
    """File of the chain that the peer must show."""
    also: str = ""
    """File of another that it may show, while one is being replaced."""
    seconds: float = 0.0
    count: int = 0
    """Stop after so many operations, made one after the other, in place of some seconds."""
    rate: float = 0.0
    """New connections a second; 0: as many as the case has at once."""
    idle: int = 0
    """Open so many connections, and close them at the word."""


class Load:
    """The process, from outside."""

    def __init__(self, core: int) -> None:
        self._process = subprocess.Popen(
            ("taskset", "-c", str(core), sys.executable, "-m", "bench.compare.load"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENSSL_CONF": str(CONFIGURATION)},
        )

    def prepare(self, order: Order) -> dict[str, Any]:
        """Returns when the work could begin, with the errors that were made until then."""
        return self._ask(asdict(order))

    def go(self) -> dict[str, Any]:
        """The work; what came of it."""
        return self._ask({})

    def _ask(self, what: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise LoadError("the load generator ended")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # nothing more to say: it ends


# The process itself


class Work:
    """One order that is carried out."""

    def __init__(self, order: Order) -> None:
        case = BY_NAME[order.case]
        self._order, self._case = order, case
        ours = case.version == "1.3" and case.operation in FRESH
        made = None if ours else client.context(case.version, case.group, case.suite)
        files = filter(None, (order.fullchain, order.also))
        self._client = Client(order.port, made, [client.certificates(Path(file)) for file in files])
        self._loop = Loop()
        self._kept: list[Tls] = []
        self._sessions: list[Session] = []
        """To be resumed, each once: what a connection is given is for the next one."""
        self._times: list[float] = []
        self.errors: list[str] = []
        self._ends = 0.0
        self._at_once = 1 if order.count else case.connections

    def prepare(self) -> None:
        """Open what the work is done on, and get what it needs."""
        case = self._case
        if case.resumed:
            self._open(self._at_once)
            self._sessions = [tls.session for tls in self._kept if isinstance(tls, Tls13)]
            self._close()
            self._client.handshakes.clear()
            self._client.ends.clear()
        elif self._order.idle or case.operation not in FRESH:
            self._open(self._order.idle or self._at_once)

    def run(self) -> dict[str, Any]:
        cpu, began = time.process_time(), time.perf_counter()
        self._ends = began + self._order.seconds
        if self._order.rate:
            self._at_a_rate(began)
        elif self._case.operation in FRESH and not self._order.idle:
            for _ in range(self._at_once):
                self._visit_again()
        elif self._order.idle:
            self._look_at_idle()
        else:
            for tls in self._kept:
                self._loop.start(tls, self._keep(tls), partial(self._kept_ended, tls))
        self._finish()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        self._close()
        return {
            "operations": len(self._times),
            "seconds": seconds,
            "load_cpu": cpu,
            "error_count": len(self.errors),
            "errors": list(dict.fromkeys(self.errors))[:KEPT_ERRORS],
            "handshakes": self.handshakes(),
            "ends": dict(self._client.ends),
            "renewed": self._client.renewed,
            "latency": percentiles(self._times),
            "times": [round(each * 1e6) for each in self._times] if self._order.rate else [],
        }

    def handshakes(self) -> list[list[Any]]:
        """What they were, and how many were so."""
        return [[*seen, count] for seen, count in self._client.handshakes.items()]

    # New connections

    def _visit_again(self) -> None:
        if self._goes_on():
            self._visit(time.perf_counter(), self._visit_again)

    def _visit(self, since: float, afterwards: Callable[[], None]) -> None:
        session = self._sessions.pop(0) if self._case.resumed else None
        tls = self._client.connect(session=session)

        def steps() -> Steps:
            yield from self._client.handshake(tls, self._case.resumed)
            if self._case.operation == "visit":
                yield from self._client.get(tls)
            took = time.perf_counter() - since
            if isinstance(tls, Tls13) and self._case.resumed:
                self._sessions.append(tls.session)
            yield from self._client.goodbye(tls, answered=self._case.operation == "visit")
            self._times.append(took)

        def ended(error: Exception | None) -> None:
            tls.close()
            self._note(error)
            afterwards()

        self._loop.start(tls, steps(), ended)

    def _at_a_rate(self, began: float) -> None:
        """Times count from when a connection was due, so that a late one is not excused."""
        due = began
        while due < self._ends:
            if (wait := due - time.perf_counter()) > 0:
                self._loop.turn(wait)
            else:
                self._visit(due, lambda: None)
                due += 1 / self._order.rate

    # Kept connections

    def _open(self, count: int) -> None:
        """So many connections, each greeted: its handshake, and one operation or request."""
        for number in range(count):
            tls = self._client.connect(_source(number) if self._order.idle else "")
            self._kept.append(tls)
            self._loop.start(tls, self._greet(tls), self._note)
            while len(self._loop) >= AT_ONCE:
                self._turn()
        self._finish()

    def _greet(self, tls: Tls) -> Steps:
        yield from self._client.handshake(tls)
        if self._case.operation == "echo":
            yield from self._client.open_socket(tls)
        else:
            yield from self._client.get(tls)

    def _keep(self, tls: Tls) -> Steps:
        operation = getattr(self._client, self._case.operation)
        while self._goes_on():
            began = time.perf_counter()
            kept = yield from operation(tls)
            self._times.append(time.perf_counter() - began)
            if not kept:
                yield from self._client.left(tls)
                self._kept.remove(tls)
                return

    def _kept_ended(self, tls: Tls, error: Exception | None) -> None:
        """If the peer has had enough requests of it: on to a new one, as a client would."""
        self._note(error)
        if tls in self._kept:
            return  # the time is over: `_close` is for it
        tls.close()
        if self._goes_on():
            new = self._client.connect()
            self._kept.append(new)
            self._loop.start(new, self._renewed(new), partial(self._kept_ended, new))

    def _renewed(self, tls: Tls) -> Steps:
        yield from self._client.handshake(tls)
        yield from self._keep(tls)

    def _close(self) -> None:
        """Say goodbye to all that are kept; after an error they are only closed."""
        for tls in self._kept if not self.errors else ():
            self._loop.start(tls, self._client.goodbye(tls), self._note)
        self._finish()
        for tls in self._kept:
            tls.close()
        self._kept.clear()

    def _look_at_idle(self) -> None:
        """What was closed, or has something to say, was not idle."""
        poll = select.poll()
        for tls in self._kept:
            poll.register(tls, select.POLLIN)
        if heard := len(poll.poll(0)):
            self.errors.append(f"{heard} connections did not stay idle")

    # Until it is done

    def _goes_on(self) -> bool:
        """An error ends it: a run that failed is not a number."""
        if self._order.count:
            return len(self._times) < self._order.count and not self.errors
        return time.perf_counter() < self._ends and not self.errors

    def _finish(self) -> None:
        while len(self._loop):
            self._turn()

    def _turn(self) -> None:
        if not self._loop.turn(PATIENCE):
            raise LoadError("; ".join([f"nothing happened for {PATIENCE:g} s", *self.errors[:1]]))

    def _note(self, error: Exception | None) -> None:
        if error is not None:
            self.errors.append(f"{type(error).__name__}: {error}")


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """In microseconds."""
    ordered = sorted(times)
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    return {
        name: round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e6, 1)
        for name, share in shares.items()
        if ordered
    }


# Private


def _source(number: int) -> str:
    """Addresses of the loopback, each for a few connections."""
    return f"127.0.0.{2 + number // IDLE_FOR_EACH_ADDRESS}"


def _failed(error: Exception) -> dict[str, Any]:
    return {"operations": 0, "error_count": 1, "errors": [f"{type(error).__name__}: {error}"]}


def _main() -> None:
    """An order, its preparation, the word, its work; until the end of the input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us, who then stops us
    gc.disable()  # it would strike at random; the garbage is collected between orders
    while line := sys.stdin.readline():
        work = Work(Order(**json.loads(line)))
        failed: Exception | None = None
        try:
            work.prepare()
        except (OSError, ValueError, LoadError) as error:
            failed = error
        errors = work.errors if failed is None else [str(failed)]
        print(json.dumps({"errors": errors, "handshakes": work.handshakes()}), flush=True)
        sys.stdin.readline()
        try:
            done = work.run() if failed is None else _failed(failed)
        except (OSError, ValueError, LoadError) as error:
            done = _failed(error)
        print(json.dumps(done), flush=True)
        gc.collect()


if __name__ == "__main__":
    _main()
