"""How long a client waits when new connections come at a fixed rate, far below what a peer can do.

Every connection is new, with a full handshake and one request; its time counts from when
it was due, so that a peer, or a generator, that is late cannot hide it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench.compare import accounting
from bench.compare.cases import BY_NAME
from bench.compare.fleet import LOAD_CORE, Fleet
from bench.compare.load import Load, Order
from bench.compare.rounds import wrong

CASE = BY_NAME["visit"]
RATE = 200.0
"""New connections a second."""


def measure(fleet: Fleet, rounds: int, seconds: float) -> dict[str, Any]:
    """Every time of every round, in microseconds."""
    with Load(LOAD_CORE) as load:
        return _measured(fleet, load, rounds, seconds)


# Private


def _measured(fleet: Fleet, load: Load, rounds: int, seconds: float) -> dict[str, Any]:
    problems = dict(fleet.problems)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in fleet.peers}
    for _ in range(rounds):
        for name, peer in fleet.peers.items():
            if name in problems:
                continue
            load.prepare(
                Order(CASE.name, peer.site.port, str(fleet.lineage.fullchain), seconds=seconds, rate=RATE)
            )
            cpu = accounting.cpu(peer.pid)
            seen = load.go()
            seen["cpu"] = accounting.cpu(peer.pid) - cpu
            if problem := wrong(CASE, seen):
                problems[name] = problem
            found[name].append(seen)
    return {
        "case": asdict(CASE),
        "rate": RATE,
        "rounds": rounds,
        "seconds": seconds,
        "problems": problems,
        "slices": found,
    }
