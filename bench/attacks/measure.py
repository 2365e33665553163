"""One case: a clean client all the time, and an attack for some of it.

Quiet and attacked phases take turns, so that whatever else the machine does falls on both.
What the proxy uses in a quiet phase is taken off what it uses in an attacked one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.attacks.attacker import Attacker, Order
from tests.attacks.bill import LIMIT, Bill, Meter, cpu_of
from tests.attacks.cases import Case, Held
from tests.attacks.clean import Clean, Sample
from tests.attacks.front import Front, front
from tests.attacks.slowhttptest import running_slowhttptest

TIMEOUTS = dict.fromkeys(
    ("handshake", "head", "body", "body_grace", "write", "keep_alive", "tunnel"),
    "2s",
)
"""So short that attackers are cut off in every phase, and come again."""
RAMP = 100.0
"""New connections in a second; also those that replace others."""
CLEAN_RATE = 20.0
WARM_UP = 1.5
SETTLE = 0.5
"""Seconds between an attack and the quiet that is measured."""
P99_LIMIT = 3.0
BURSTS = 1_000_000
"""As many as fit into a phase."""


@dataclass(frozen=True, slots=True)
class Plan:
    connections: int
    seconds: float
    """Of a phase."""
    rounds: int


@dataclass(frozen=True, slots=True)
class Sent:
    """What a sender did in one phase."""

    cpu: float
    size: int
    connections: int


Assault = Callable[[Plan], Sent]
"""Attacks once, for about a phase."""
Begin = Callable[[Front], AbstractContextManager[Assault]]
"""Makes one ready against a proxy."""


@dataclass(slots=True)
class Found:
    """All that one measurement of a case saw."""

    bill: Bill
    quiet: list[Sample] = field(default_factory=list)
    attacked: list[Sample] = field(default_factory=list)
    failures: list[Sample] = field(default_factory=list)
    requests: int = 0
    connections: int = 0

    @property
    def p99_ratio(self) -> float:
        return percentile(self.attacked, 0.99) / percentile(self.quiet, 0.99)

    def as_json(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "failures": [f"{sample.way}: {sample.failure}" for sample in self.failures[:20]],
            "failed": len(self.failures),
            "quiet_p50": percentile(self.quiet, 0.5),
            "attacked_p50": percentile(self.attacked, 0.5),
            "quiet_p99": percentile(self.quiet, 0.99),
            "attacked_p99": percentile(self.attacked, 0.99),
            "p99_ratio": self.p99_ratio,
            "connections": self.connections,
            "proxy_cpu": self.bill.cpu,
            "sender_cpu": self.bill.sender_cpu,
            "cpu_ratio": self.bill.cpu_ratio,
            "proxy_memory": self.bill.memory,
            "sender_bytes": self.bill.sent,
            "memory_ratio": self.bill.memory_ratio,
        }


def scripted(case: Case) -> Begin:
    """The attacker of `case`, which stays over the phases."""

    @contextmanager
    def begin(place: Front) -> Iterator[Assault]:
        held = isinstance(case.attack, Held)
        many, pace = (None, RAMP) if held else (BURSTS, case.per_second)
        with Attacker(case, place.proxied.port) as attacker:

            def attack(plan: Plan) -> Sent:
                bot_cpu, bot_sent = cpu_of([place.bot.pid]), place.bot.sent()
                attacker.start(Order(plan.seconds, many or plan.connections, pace, again=True))
                effort = attacker.wait()
                if case.sender == "client":
                    return Sent(effort.cpu, effort.sent, effort.connections)
                bot_cpu, bot_sent = cpu_of([place.bot.pid]) - bot_cpu, place.bot.sent() - bot_sent
                return Sent(effort.cpu + bot_cpu, effort.sent + bot_sent, effort.connections)

            yield attack

    return begin


def by_slowhttptest(program: str, mode: str) -> Begin:
    """A new run of it in each phase."""

    @contextmanager
    def begin(place: Front) -> Iterator[Assault]:
        def attack(plan: Plan) -> Sent:
            port, seconds = place.proxied.port, math.ceil(plan.seconds)
            count, rate = plan.connections, int(RAMP)
            with running_slowhttptest(
                program, mode, port, connections=count, rate=rate, seconds=seconds
            ) as tool:
                tool.end(plan.seconds)
                return Sent(tool.cpu(), tool.sent(), count)

        yield attack

    return begin


def measure(begin: Begin, settings: dict[str, Any], plan: Plan) -> Found:
    """A fresh proxy, and all phases of one case."""
    quiet: list[Sample] = []
    attacked: list[Sample] = []
    sent: list[Sent] = []
    quiet_cpu = attacked_cpu = quiet_seconds = attacked_seconds = 0.0
    with (
        front(TIMEOUTS, settings) as place,
        Clean(place.proxied.port, place.ca, CLEAN_RATE) as clean,
        begin(place) as assault,
    ):
        time.sleep(WARM_UP)
        meter = Meter(place.proxied).begin()
        for _ in range(plan.rounds):
            before, began = meter.cpu(), time.monotonic()
            time.sleep(plan.seconds)
            ended = time.monotonic()
            quiet_cpu, quiet_seconds = quiet_cpu + meter.cpu() - before, quiet_seconds + ended - began
            quiet += _finished(clean, began, ended)

            before, began = meter.cpu(), time.monotonic()
            sent.append(assault(plan))
            ended = time.monotonic()
            time.sleep(SETTLE)  # what was sent last is paid for, too
            attacked_cpu += meter.cpu() - before
            attacked_seconds += ended - began + SETTLE
            attacked += _finished(clean, began, ended)
        memory = meter.memory()
    extra = attacked_cpu - quiet_cpu * attacked_seconds / quiet_seconds
    bill = Bill(extra, memory, sum(each.cpu for each in sent), sum(each.size for each in sent))
    connections = sum(each.connections for each in sent)
    return Found(bill, quiet, attacked, clean.failures, len(clean.samples), connections)


def problems(found: Sequence[dict[str, Any]]) -> list[str]:
    """What a case fails in; of measurements that were repeated the middle one counts for the time."""
    said = []
    if any(each["failed"] for each in found):
        said.append("errors")
    if middle([each["p99_ratio"] for each in found]) >= P99_LIMIT:
        said.append("p99")
    if middle([each["cpu_ratio"] for each in found]) > LIMIT:
        said.append("CPU")
    if middle([each["memory_ratio"] for each in found]) > LIMIT:
        said.append("memory")
    return said


def middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def percentile(samples: Sequence[Sample], share: float) -> float:
    ordered = sorted(sample.seconds for sample in samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# Private


def _finished(clean: Clean, began: float, ended: float) -> list[Sample]:
    """Requests that were due between the two; those still under way are waited for."""
    clean.wait(2)
    return clean.between(began, ended)
