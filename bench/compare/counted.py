"""User-space instructions per operation, which do not drift: `bench.instructions` with these peers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any, get_args

from bench import instructions
from bench.compare.cases import BY_NAME
from bench.compare.fleet import LOAD_CORE, Fleet, fleet, placed
from bench.compare.load import Load, LoadError, Order
from bench.compare.rounds import wrong
from bench.lineage import Keys
from bench.peers.botproxy import Botproxy
from bench.peers.nginx import Nginx
from bench.peers.peer import Peer

AT_ONCE = 2
"""Counts do not mind company."""
BY_OBJECT = (Botproxy, Nginx)
"""Of those it is also asked whose instructions they are."""
EVERYBODY = ("visit", "keep-alive")
"""Cases in which the others are counted as well."""
TRIES = 2
"""A process that is killed before it has written its count leaves none."""


def measure(kinds: Sequence[type[Peer]], counts: Mapping[str, int]) -> dict[str, Any]:
    """Of every kind, for the cases of `counts`, which says how many operations the shorter run has."""
    if not instructions.is_here():
        return {"error": "valgrind is missing"}
    cases: dict[str, Any] = {}
    for keys in get_args(Keys):
        with fleet([], keys) as ready, ThreadPoolExecutor(AT_ONCE) as pool:
            jobs = {
                case: {
                    kind.name: pool.submit(partial(_count, ready, kind, case, count))
                    for kind in kinds
                    if case in EVERYBODY or kind in BY_OBJECT
                }
                for case, count in counts.items()
                if BY_NAME[case].keys == keys
            }
            cases |= {
                case: {name: job.result() for name, job in those.items()} for case, those in jobs.items()
            }
    return {"tool": instructions.version(), "cases": cases}


# Private


def _count(ready: Fleet, kind: type[Peer], case: str, count: int) -> dict[str, Any]:
    if not kind.is_here():
        return {"error": "missing"}
    with ExitStack() as stack:
        load = stack.enter_context(Load(LOAD_CORE))
        peer = placed(kind, ready, f"{kind.__name__}-{case}")

        def operate(operations: int) -> None:
            load.prepare(Order(case, peer.site.port, str(ready.lineage.fullchain), count=operations))
            seen = load.go()
            if problem := wrong(BY_NAME[case], seen):
                raise LoadError(problem)
            if seen["operations"] != operations:
                raise LoadError(f"{seen['operations']} of {operations}")

        server = instructions.Server(
            peer.arguments,
            peer.serves,
            operate,
            prepare=partial(_as_new, peer),
            directory=peer.site.directory,
            environment=peer.environment(),
        )
        problem = ""
        for _ in range(TRIES):
            try:
                cost = instructions.per_operation(server, count, by_object=kind in BY_OBJECT)
                return {"tool": _tool(kind), **cost.as_json()}
            except (instructions.CountError, LoadError, OSError) as error:
                problem = f"{type(error).__name__}: {error}"
        return {"error": problem}


def _tool(kind: type[Peer]) -> str:
    """What counts it: both count the same instructions, and one says whose they are."""
    return instructions.OBJECTS if kind in BY_OBJECT else instructions.TOTALS


def _as_new(peer: Peer) -> None:
    """What botproxy has accepted before would make its second start another than its first."""
    shutil.rmtree(peer.site.directory / "state", ignore_errors=True)
    peer.configure()
