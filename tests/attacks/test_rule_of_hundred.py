"""No input costs the proxy more than a hundred times its sender's effort, and nobody else notices.

For each attack: CPU and memory against those of the sender, a clean client beside it that
sees no error, and slots that are free again although the attackers would stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.attacks.attacker import Attacker, Effort, Order
from tests.attacks.bill import LIMIT, MEMORY_FLOOR, Bill, Meter, cpu_of
from tests.attacks.cases import CASES, SHORT, Burst, Case, Held
from tests.attacks.clean import Clean
from tests.attacks.front import Front, front
from tests.harness import descriptors_of, eventually

LONG = 60.0
"""Seconds after which an attacker gives up; the proxy has cut it off long before."""
CROWD, BURSTS = 200, 10
"""Connections of an attack, unless its case says otherwise."""
RAMP = 400.0
"""New connections of a crowd in a second."""
LINE_LIMIT = 4096
"""Bytes of a log line, whatever was sent."""
CONNECTION_LIMIT = 128 * 1024
"""Bytes that one connection may take: 64 KiB that wait, and what it is made of."""

HELD = [case for case in CASES if isinstance(case.attack, Held)]
SENT = [case for case in CASES if isinstance(case.attack, Burst)]


@dataclass(frozen=True)
class Besieged:
    """A proxy, and a clean client that is served by it all the time."""

    front: Front
    clean: Clean


@contextmanager
def besieged(settings: Mapping[str, Any]) -> Iterator[Besieged]:
    with front(SHORT, settings) as place, Clean(place.proxied.port, place.ca, 10) as clean:
        clean.wait(4)  # what is done once for all is done
        yield Besieged(place, clean)


@pytest.fixture(scope="module")
def lasting() -> Iterator[Besieged]:
    """One for all attacks that are over at once."""
    with besieged({}) as one:
        yield one


@pytest.mark.parametrize("case", HELD, ids=lambda case: case.name)
def test_connections_that_are_held_are_no_bargain(case: Case) -> None:
    # A proxy for each: what one left in memory would hide what the next takes.
    with besieged(case.settings) as one:
        judge(case, one)


@pytest.mark.parametrize("case", SENT, ids=lambda case: case.name)
def test_what_is_sent_is_no_bargain(case: Case, lasting: Besieged) -> None:
    judge(case, lasting)


def judge(case: Case, one: Besieged) -> None:
    """Attack, and look at everything that must hold then."""
    proxied = one.front.proxied
    (worker,) = proxied.workers()
    slots = descriptors_of(worker)
    logged = size_of(proxied.access.lines)
    bill, effort = attack(case, one.front)
    eventually(lambda: descriptors_of(worker) <= slots + 2, "slots are not free again")
    one.clean.wait(2)
    assert not one.clean.failures
    assert bill.cpu_ratio <= LIMIT, (bill, effort)
    assert bill.memory <= MEMORY_FLOOR + CONNECTION_LIMIT * effort.most, (bill, effort)
    assert max(len(line) for line in [*proxied.access.lines, *proxied.log.lines]) <= LINE_LIMIT
    assert size_of(proxied.access.lines) - logged <= LIMIT * bill.sent
    assert bill.memory_ratio <= LIMIT, (bill, effort)


def attack(case: Case, place: Front) -> tuple[Bill, Effort]:
    """Attack once, until the proxy has ended every connection that does not leave by itself."""
    held = isinstance(case.attack, Held)
    order = Order(LONG, case.connections or (CROWD if held else BURSTS), RAMP if held else 0.0, again=False)
    with Attacker(case, place.proxied.port) as attacker:
        bot_cpu, bot_sent = cpu_of([place.bot.pid]), place.bot.sent()
        meter = Meter(place.proxied).begin()
        attacker.start(order)
        effort = attacker.wait()
        cpu, memory = meter.cpu(), meter.memory()
        bot_cpu, bot_sent = cpu_of([place.bot.pid]) - bot_cpu, place.bot.sent() - bot_sent
    assert effort.connections == order.connections, effort
    if isinstance(case.attack, Held) or not case.attack.leave:
        assert effort.refused + effort.ended == order.connections, effort
    if case.sender == "bot":
        return Bill(cpu, memory, effort.cpu + bot_cpu, effort.sent + bot_sent), effort
    return Bill(cpu, memory, effort.cpu, effort.sent), effort


def size_of(lines: list[str]) -> int:
    return sum(len(line) + 1 for line in list(lines))
