"""Memory of a connection that is open and does nothing, in every peer's process tree.

The first hundred are not counted (tables grow, caches fill); every one has had a request,
and after it silence, long enough for what is kept towards the bot to be let go where that
is somebody's default. At the end all must be there still, and silent. The kernel's memory
for sockets is in no figure.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from bench.compare import accounting
from bench.compare.cases import BY_NAME
from bench.compare.fleet import LOAD_CORE, Fleet
from bench.compare.load import Load, Order
from bench.compare.rounds import wrong

CASE = BY_NAME["visit"]
UNCOUNTED = 100
SILENCE = 5.0


def measure(fleet: Fleet, connections: int) -> dict[str, Any]:
    """Bytes, for each peer."""
    peers: dict[str, dict[str, Any]] = {name: {} for name in fleet.peers}
    loads: list[tuple[str, Load]] = []
    with ExitStack() as stack:
        before = _opened(fleet, UNCOUNTED, peers, stack, loads)
        after = _opened(fleet, connections, peers, stack, loads)
        _close(loads, peers)
    for name, seen in peers.items():
        if "error" not in seen:
            seen["before"], seen["after"] = before[name], after[name]
            seen["each"] = (after[name] - before[name]) / connections
    return {"case": asdict(CASE), "connections": connections, "problems": fleet.problems, "peers": peers}


# Private


def _opened(
    fleet: Fleet,
    count: int,
    peers: dict[str, dict[str, Any]],
    stack: ExitStack,
    loads: list[tuple[str, Load]],
) -> dict[str, int]:
    """Memory of each once so many more are open to it, which stay until the end of `stack`."""
    for name, peer in fleet.peers.items():
        load = stack.enter_context(Load(LOAD_CORE))
        opened = load.prepare(Order(CASE.name, peer.site.port, str(fleet.lineage.fullchain), idle=count))
        if problem := wrong(CASE, {**opened, "operations": count, "error_count": len(opened["errors"])}):
            peers[name]["error"] = problem
        loads.append((name, load))
    time.sleep(SILENCE)
    return {name: accounting.memory(peer.pid) for name, peer in fleet.peers.items()}


def _close(loads: Sequence[tuple[str, Load]], peers: dict[str, dict[str, Any]]) -> None:
    """All of them, which must have been there until now, and end in good order."""
    for name, load in loads:
        done = load.go()
        if done["error_count"]:
            peers[name].setdefault("error", "; ".join(done["errors"]))
