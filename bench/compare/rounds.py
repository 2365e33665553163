"""Peers in turns: every round gives each of them one slice of the same work.

What differs from minute to minute on a shared machine then differs for all alike, and a
ratio of one round is one of neighbours in time. The order turns with the rounds, so that
nobody always follows the same. The first round is for warming up, and is thrown away. One
error ends a peer's part in a case: a run that failed is not a number.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bench.compare import accounting
from bench.compare.cases import FRESH, Case
from bench.compare.fleet import LOAD_CORE, Fleet
from bench.compare.floor import Floor
from bench.compare.load import Load, Order

CHAIN = 2
"""Certificates that a server must send: its own and the intermediate."""
SETTLING = 0.01
"""Seconds after the last answer, for what a server does when its client has gone."""


def measure(case: Case, fleet: Fleet, floors: Mapping[str, Floor], rounds: int) -> dict[str, Any]:
    """Every slice of `case`."""
    with Load(LOAD_CORE) as load:
        return _measured(case, fleet, load, floors, rounds)


def wrong(case: Case, seen: Mapping[str, Any]) -> str | None:
    """Why a slice is not a number; None if it is."""
    if seen["error_count"] or not seen["operations"]:
        return f"failed: {'; '.join(seen['errors'])[:300] or 'nothing was done'}"
    agreed = [f"TLSv{case.version}", case.suite, case.resumed]
    for *handshake, certificates, _ in seen["handshakes"]:
        if handshake != agreed or (certificates != CHAIN and not case.resumed):
            return f"another handshake: {handshake}, {certificates} certificates"
    return None


# Private


def _measured(
    case: Case, fleet: Fleet, load: Load, floors: Mapping[str, Floor], rounds: int
) -> dict[str, Any]:
    names = [*fleet.peers, *(floors if case.operation in FRESH else ())]
    slices: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    problems = dict(fleet.problems)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if name in problems:
                continue
            seen = floors[name].slice(case) if name in floors else _slice(case, fleet, name, load)
            if problem := wrong(case, seen):
                problems[name] = problem
            elif number:
                slices[name].append(seen)
    return {"case": asdict(case), "rounds": rounds, "problems": problems, "slices": slices}


def _slice(case: Case, fleet: Fleet, name: str, load: Load) -> dict[str, Any]:
    peer = fleet.peers[name]
    load.prepare(Order(case.name, peer.site.port, str(fleet.lineage.fullchain), seconds=case.seconds))
    cpu, ticks, bot = accounting.cpu(peer.pid), accounting.ticks(peer.pid), accounting.cpu(fleet.bot)
    kernel = accounting.kernel(peer.pid)
    seen = load.go()
    time.sleep(SETTLING)
    seen["cpu"] = accounting.cpu(peer.pid) - cpu
    seen["ticks"] = accounting.ticks(peer.pid) - ticks
    seen["kernel"] = accounting.kernel(peer.pid) - kernel
    seen["bot_cpu"] = accounting.cpu(fleet.bot) - bot
    seen.pop("times", None)
    return seen
