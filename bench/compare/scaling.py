"""Two workers in place of one: does an operation cost more, and is the work shared?

The machine has two cores and the load needs one, so that twice the rate cannot be seen
here. What can be: the CPU of an operation with two workers on both cores, to that with one
worker on its core, in turns; and how much of it the busier worker did. Twice the rate is
possible where the first is 1 and the second a half.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.compare import accounting
from bench.compare.cases import Case
from bench.compare.fleet import LOAD_CORE, SERVER_CORE, Fleet, fleet
from bench.compare.load import Load, Order
from bench.compare.rounds import SETTLING, wrong
from bench.peers.peer import Peer


def measure(
    kinds: Sequence[type[Peer]], cases: Sequence[Case], rounds: int, seconds: float
) -> dict[str, Any]:
    """Slices with one and with two workers."""
    both = f"{SERVER_CORE},{LOAD_CORE}"
    found: dict[str, Any] = {}
    with fleet(kinds, "ecdsa") as one, fleet(kinds, "ecdsa", 2, both) as two, Load(LOAD_CORE) as load:
        for case in (replace(case, seconds=seconds) for case in cases):
            slices: dict[str, dict[str, list[dict[str, Any]]]] = {}
            problems = {**one.problems, **two.problems}
            for number in range(rounds + 1):
                for name in one.peers.keys() & two.peers.keys():
                    pair = [_slice(case, ready, name, load) for ready in (one, two)]
                    if problem := next(filter(None, (wrong(case, seen) for seen in pair)), None):
                        problems[name] = problem
                    elif number:
                        kept = slices.setdefault(name, {"one": [], "two": []})
                        kept["one"].append(pair[0])
                        kept["two"].append(pair[1])
            found[case.name] = {"problems": problems, "slices": slices}
    return {"rounds": rounds, "cases": found}


# Private


def _slice(case: Case, ready: Fleet, name: str, load: Load) -> dict[str, Any]:
    peer = ready.peers[name]
    load.prepare(Order(case.name, peer.site.port, str(ready.lineage.fullchain), seconds=case.seconds))
    before = accounting.threads(peer.pid)
    seen = load.go()
    time.sleep(SETTLING)
    spent = sorted(value - before.get(key, 0) for key, value in accounting.threads(peer.pid).items())
    seen.pop("times")
    return {**seen, "cpu": sum(spent), "busiest": spent[-1], "second": spent[-2] if len(spent) > 1 else 0.0}
