"""What a reload costs while connections come at a fixed rate, and what their clients notice.

Windows with and without a reload take turns; its price is the difference of the CPU that
the whole tree has used, processes that came and went included, and of the command that was
given. Failed connections are a result here: they do not void it.

A renewal is told in the peer's own way: to botproxy not at all, it looks by itself. Its
reload of the configuration, a second team of workers, is a row of its own.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from bench.compare import accounting
from bench.compare.fleet import LOAD_CORE, Fleet, fleet
from bench.compare.load import Load, Order
from bench.compare.statistics import percentile
from bench.peers.botproxy import Botproxy
from bench.peers.peer import Peer

RATE = 60.0
"""New connections a second."""
WINDOW = 1.5
HEAD_START = 0.2
"""Seconds of load before the reload."""
TAIL = 0.6
"""Seconds after the load in which a reload may still cost something."""


def measure(kinds: list[type[Peer]], pairs: int) -> dict[str, Any]:
    """Every window of every kind, and of botproxy's two ways."""
    found: dict[str, Any] = {}
    for kind in kinds:
        found[f"{kind.name}: {kind.command}"] = _windows(kind, pairs, lambda peer: peer.tell)
        if issubclass(kind, Botproxy):
            found[f"{kind.name}: SIGHUP"] = _windows(kind, pairs, lambda peer: peer.change_configuration)
    return {"rate": RATE, "window": WINDOW, "pairs": pairs, "peers": found}


# Private


def _windows(kind: type[Peer], pairs: int, command: Callable[[Any], Callable[[], object]]) -> dict[str, Any]:
    with fleet([kind], "ecdsa") as ready, Load(LOAD_CORE) as load:
        if ready.problems:
            return {"error": ready.problems[kind.name]}
        (peer,) = ready.peers.values()
        quiet, reloaded = [], []
        _window(ready, peer, load, None)  # to warm up
        for _ in range(pairs):
            quiet.append(_window(ready, peer, load, None))
            reloaded.append(_window(ready, peer, load, command(peer)))
    price = median(one["cpu"] - other["cpu"] for one, other in zip(reloaded, quiet, strict=True))
    return {"seconds_of_cpu": price, "quiet": quiet, "reloaded": reloaded}


def _window(ready: Fleet, peer: Peer, load: Load, command: Callable[[], object] | None) -> dict[str, Any]:
    lineage = ready.lineage
    before = lineage.file("fullchain")
    if command is not None:
        lineage.write(lineage.issue())
    order = Order(
        "visit",
        peer.site.port,
        str(before),
        also=str(lineage.file("fullchain")),
        seconds=WINDOW,
        rate=RATE,
    )
    load.prepare(order)
    processes = set(accounting.tree(peer.pid))
    cpu = accounting.ticks(peer.pid) + _commands()
    reload = threading.Timer(HEAD_START, partial(_reload, ready, command)) if command else None
    if reload:
        reload.start()
    seen = load.go()
    if reload:
        reload.join()
    time.sleep(TAIL)
    times = seen["times"]
    return {
        "cpu": accounting.ticks(peer.pid) + _commands() - cpu,
        "new_processes": len(set(accounting.tree(peer.pid)) - processes),
        "operations": seen["operations"],
        "renewed": seen["renewed"],
        "error_count": seen["error_count"],
        "errors": seen["errors"],
        "p50": percentile(times, 0.5) if times else None,
        "p99": percentile(times, 0.99) if times else None,
        "max": max(times, default=None),
    }


def _reload(ready: Fleet, command: Callable[[], object]) -> None:
    for kind in ("cert", "privkey", "chain", "fullchain"):
        ready.lineage.swap(kind)
    command()


def _commands() -> float:
    """Seconds that commands have used which were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
