"""Everything that `make bench` measures, one part after the other; each writes a file of its own.

Run `python -m bench.compare`. `--quick` is for a look: few peers, few rounds, short slices,
and like every choice of some it needs `--results`, because what is written replaces all that
was in its folder. What cannot be measured, a part or a peer, says why in its file, and the
others go on; the exit code is then 1. That a peer is not installed is no failure; that
valgrind is not is one. Exit code 2: usage, or a Python whose client cannot do what is asked.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import signal
import ssl
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bench.compare import counted, idle, renewal, rest, rounds, scaling, steady, versions
from bench.compare.cases import BY_NAME, CASES, Case
from bench.compare.fleet import PEERS, SERVER_CORE, Fleet, Haproxy, fleet
from bench.compare.floor import Floor
from bench.compare.load import LoadError
from bench.peers.botproxy import Botproxy
from bench.peers.caddy import Caddy
from bench.peers.hitch import Hitch
from bench.peers.nginx import Nginx, NginxAlike
from bench.peers.peer import Peer
from bench.peers.python import Uvicorn

RESULTS = Path(__file__).resolve().parents[1] / "results"
FLOORS = {"OpenSSL, one ticket": 1, "OpenSSL, two tickets": 2}
PARTS = ("rest", "idle", "cases", "steady", "reload", "scaling", "instructions")
RELOADING = (Botproxy, Nginx, Haproxy, Caddy, Hitch)
"""Those that know a reload, and two workers that are alike."""
COUNTED = (Botproxy, Nginx, NginxAlike, Haproxy, Uvicorn)
"""Of those that end in order under valgrind, and do not translate themselves while they run."""
MISSING = "missing"
"""Said of a peer that is not installed."""
SCALED = ("visit", "keep-alive")
"""Cases."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured, how thoroughly, and where it goes."""

    results: Path
    peers: Sequence[type[Peer]] = PEERS
    cases: Sequence[Case] = CASES
    rounds: int = 9
    slice: float = 0.2
    """Seconds; of an operation that takes longer, one is done."""
    idle: int = 400
    """Connections."""
    steady: float = 0.6
    """Seconds of a round."""
    pairs: int = 3
    """Windows with a reload, and as many without."""
    counts: Mapping[str, int] = field(
        default_factory=lambda: {"visit": 120, "resumed": 60, "visit-rsa": 60, "keep-alive": 300}
    )
    """Operations whose instructions are counted, by case."""
    parts: Collection[str] = PARTS


QUICK = Plan(
    RESULTS,
    cases=[BY_NAME[name] for name in ("visit", "keep-alive")],
    rounds=3,
    slice=0.1,
    idle=100,
    steady=0.2,
    pairs=1,
    counts={"visit": 20},
)


class Run:
    """Writes what is measured, and remembers whether anything was not."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.failed: list[str] = []
        self._date = datetime.now(UTC).isoformat(timespec="seconds")
        plan.results.mkdir(parents=True, exist_ok=True)
        for old in plan.results.glob("*.json"):
            old.unlink()

    def write(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """What `measure` finds, or why it finds nothing, as NAME.json."""
        print(f"{name} ", end="", flush=True)
        began = time.monotonic()
        try:
            found = measure()
        except (OSError, ValueError, AssertionError, LoadError) as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        seconds = time.monotonic() - began
        problems = list(failures(found))
        if problems:
            self.failed.append(name)
        print(f"{seconds:.0f} s{''.join(f' {problem}' for problem in problems)}", flush=True)
        text = as_text({"date": self._date, "took_seconds": seconds, **found})
        (self.plan.results / f"{name}.json").write_text(text)


def main(plan: Plan) -> int:
    # Every peer inherits it, and has thousands of connections.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    run = Run(plan)
    run.write("versions", partial(versions.everything, plan.peers))
    if "rest" in plan.parts:
        run.write("rest", partial(rest.measure, plan.peers))
    with fleet(plan.peers, "ecdsa") as ready:
        if "idle" in plan.parts:
            run.write("idle", partial(idle.measure, ready, plan.idle))
        if "cases" in plan.parts:
            _in_turns(run, ready, [case for case in plan.cases if case.keys == "ecdsa"])
        if "steady" in plan.parts:
            run.write("steady", partial(steady.measure, ready, plan.rounds, plan.steady))
    if "cases" in plan.parts and (cases := [case for case in plan.cases if case.keys == "rsa"]):
        with fleet(plan.peers, "rsa") as ready:
            _in_turns(run, ready, cases)
    if "reload" in plan.parts:
        run.write("reload", partial(renewal.measure, _of(plan, RELOADING), plan.pairs))
    if "scaling" in plan.parts:
        cases = [BY_NAME[name] for name in SCALED]
        run.write("scaling", partial(scaling.measure, _of(plan, RELOADING), cases, plan.rounds, plan.slice))
    if "instructions" in plan.parts:
        run.write("instructions", partial(counted.measure, _of(plan, COUNTED), plan.counts))
    return 1 if run.failed else 0


def as_text(found: dict[str, Any]) -> str:
    """JSON in which every number has at most six digits behind the point, and every slice a line."""
    rounded = json.loads(json.dumps(found), parse_float=lambda number: round(float(number), 6))
    lines = (f" {json.dumps(key)}: {_lines(value)}" for key, value in rounded.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def failures(found: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Everything below `found` that could not be measured, and why: errors, and problems of peers.

    A peer that is not installed has no failure.
    """
    for key, value in found.items():
        if key == "error":
            if value != MISSING:
                yield f"{where}{value}"
        elif key == "problems":
            yield from (f"{where}{name}: {why}" for name, why in value.items() if why != MISSING)
        elif isinstance(value, Mapping):
            yield from failures(value, f"{where}{key}: ")


def lacking() -> str | None:
    """What the Python that runs the load cannot do: offer one group alone, which came with 3.11.4."""
    try:
        for case in CASES:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ecdh_curve(case.group)
    except (ssl.SSLError, ValueError) as error:
        return (
            f"expected a Python whose TLS client can offer {case.group} alone, as from 3.11.4 on; "
            f"found {platform.python_version()} ({error}); name another with: make PYTHON=python3.12 bench"
        )
    return None


def wanted(arguments: Sequence[str]) -> Plan:
    """What the command line asks for; ends with 2 where it would leave less in RESULTS than there is."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("--results", type=Path, help="folder of the JSON files, all of which are replaced")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peer", action="append", choices=[kind.name for kind in PEERS], help="these only")
    parser.add_argument("--case", action="append", choices=list(BY_NAME), help="these only")
    parser.add_argument("--part", action="append", choices=PARTS, help="these only")
    chosen = parser.parse_args(arguments)
    results = chosen.results or RESULTS
    if (chosen.quick or chosen.peer or chosen.case or chosen.part) and results.resolve() == RESULTS:
        parser.error(
            f"this measures a part of everything, and would replace all of {RESULTS}; "
            "name another folder with --results FOLDER"
        )
    if (problem := lacking()) is not None:
        parser.error(problem)
    plan = replace(QUICK if chosen.quick else Plan(RESULTS), results=results)
    if chosen.peer:
        plan = replace(plan, peers=[kind for kind in PEERS if kind.name in chosen.peer])
    if chosen.case:
        plan = replace(plan, cases=[BY_NAME[name] for name in chosen.case])
    if chosen.part:
        plan = replace(plan, parts=chosen.part)
    return plan


# Private


def _of(plan: Plan, kinds: Sequence[type[Peer]]) -> list[type[Peer]]:
    return [kind for kind in kinds if kind in plan.peers]


def _in_turns(run: Run, ready: Fleet, cases: Sequence[Case]) -> None:
    lineage = ready.lineage
    with ExitStack() as stack:
        floors = {
            name: stack.enter_context(Floor(SERVER_CORE, lineage.fullchain, lineage.privkey, tickets))
            for name, tickets in FLOORS.items()
        }
        for case in cases:
            shorter = replace(case, seconds=run.plan.slice)
            run.write(f"case-{case.name}", partial(rounds.measure, shorter, ready, floors, run.plan.rounds))


def _lines(value: Any, depth: int = 2) -> str:
    """One line for what lies `depth` below the top."""
    if not depth or not value or not isinstance(value, dict | list):
        return json.dumps(value)
    if isinstance(value, list):
        return "[\n" + ",\n".join(f"  {json.dumps(each)}" for each in value) + "\n ]"
    inner = (f"  {json.dumps(key)}: {_lines(each, depth - 1)}" for key, each in value.items())
    return "{\n" + ",\n".join(inner) + "\n }"


if __name__ == "__main__":
    plan = wanted(sys.argv[1:])
    # Peers are sessions of their own, and would outlive us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main(plan))
