"""Attacks botproxy in every way of `tests.attacks.cases`, and with slowhttptest, beside a clean client.

Run `python -m bench.attacks [CASE ...]`: all cases, or those whose names contain a word.
Prints one line for each, and puts it into results.json. Exits with 1 when one does not hold.
A case whose p99 is above the limit is measured twice more, and the middle one counts: the
machine may have had a bad moment.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import ssl
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from bench.attacks import table
from bench.attacks.measure import (
    CLEAN_RATE,
    RAMP,
    TIMEOUTS,
    Begin,
    Plan,
    by_slowhttptest,
    measure,
    problems,
    scripted,
)
from tests.attacks.cases import CASES
from tests.attacks.slowhttptest import MODES

MOST_CONNECTIONS = 1000
REPEATS = 3


def main(words: list[str], plan: Plan) -> int:
    failed = False
    print(table.HEADER, flush=True)
    for name, (begin, settings) in cases().items():
        if words and not any(word in name for word in words):
            continue
        row = measured(name, begin, settings, plan)
        keep(row)
        print(table.line(row), flush=True)
        failed = failed or bool(row["problems"])
    if not shutil.which("slowhttptest"):
        print("missing, and so not measured: slowhttptest")
    return int(failed)


def keep(row: dict[str, Any]) -> None:
    """In the place of what the case had before, in the order of all cases."""
    old = json.loads(table.RESULTS.read_text()) if table.RESULTS.exists() else []
    rows = {each["name"]: each for each in (*old, row)}
    order = [*(f"slowhttptest: {mode}" for mode in MODES), *(case.name for case in CASES)]
    text = json.dumps([rows[name] for name in order if name in rows])
    rounded = json.loads(text, parse_float=lambda number: round(float(number), 5))
    table.RESULTS.write_text(json.dumps(rounded, indent=1) + "\n")


def cases() -> Mapping[str, tuple[Begin, dict[str, Any]]]:
    """How to begin each, and what the proxy is told."""
    found: dict[str, tuple[Begin, dict[str, Any]]] = {}
    if program := shutil.which("slowhttptest"):
        for mode in MODES:
            found[f"slowhttptest: {mode}"] = by_slowhttptest(program, mode), {}
    for case in CASES:
        found[case.name] = scripted(case), dict(case.settings)
    return found


def measured(name: str, begin: Begin, settings: dict[str, Any], plan: Plan) -> dict[str, Any]:
    found = [measure(begin, settings, plan).as_json()]
    if "p99" in problems(found):
        found += [measure(begin, settings, plan).as_json() for _ in range(REPEATS - 1)]
    return {"name": name, "problems": problems(found), "conditions": conditions(plan), "measured": found}


def conditions(plan: Plan) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "workers": 1,
        "connections": plan.connections,
        "new_connections_per_second": RAMP,
        "phase_seconds": plan.seconds,
        "rounds": plan.rounds,
        "clean_requests_per_second": CLEAN_RATE,
        "timeouts": TIMEOUTS,
        "versions": f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.attacks", description=__doc__)
    parser.add_argument("case", nargs="*", help="part of a name")
    parser.add_argument("--connections", type=int, default=400, help="held at once, up to 1000")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each phase")
    parser.add_argument("--rounds", type=int, default=3, help="of a quiet and an attacked phase")
    chosen = parser.parse_args()
    if not 1 <= chosen.connections <= MOST_CONNECTIONS:
        parser.error(f"--connections: expected 1 to {MOST_CONNECTIONS}")
    sys.exit(main(chosen.case, Plan(chosen.connections, chosen.seconds, chosen.rounds)))
