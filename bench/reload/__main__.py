"""Asks every peer every question, and writes results.json.

Run `python -m bench.reload [--renewals 20] [--workers 2] [--only NAME]`, as root or not. A
peer that is not installed is written down as missing; one that cannot be measured as
failed, with the reason; neither becomes a number.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers.botproxy import Botproxy
from bench.peers.caddy import Caddy
from bench.peers.haproxy import HaproxyCommit, HaproxyReload
from bench.peers.nginx import Nginx
from bench.peers.peer import Peer
from bench.reload import clients, mismatch, sightings, tickets, unasked, under_load
from bench.reload.site import site

RESULTS = Path(__file__).parent / "results.json"
CONFIGURATIONS = Path(__file__).parent / "peers"
PEERS: tuple[type[Peer], ...] = (Nginx, HaproxyCommit, HaproxyReload, Caddy, Botproxy)

Measure = Callable[[Peer], dict[str, Any]]


def main(renewals: int, workers: int, only: str | None) -> int:
    questions: dict[str, Measure] = {
        "unasked": unasked.measure,
        "under_load": partial(under_load.measure, renewals=renewals),
        "tickets": tickets.measure,
        "mismatch": mismatch.measure,
    }
    began = time.monotonic()
    rows = [ask(kind, workers, questions) for kind in PEERS if only in (None, kind.name)]
    text = as_text(
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - began),
            "conditions": conditions(renewals, workers),
            "peers": rows,
        }
    )
    if only is None:
        RESULTS.write_text(text + "\n")
    else:
        print(text)
    return 1 if any("error" in row.get(name, {}) for row in rows for name in questions) else 0


def conditions(renewals: int, workers: int) -> dict[str, Any]:
    """Under which everybody was measured."""
    return {
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "root": os.geteuid() == 0,
        "workers": workers,
        "renewals": renewals,
        "client_processes": clients.PROCESSES,
        "client_pause_seconds": under_load.CLIENT_PAUSE,
        "client_tls": sorted(clients.VERSIONS),
        "client_versions": f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}",
        "connections_until_complete": sightings.ENOUGH,
    }


def ask(kind: type[Peer], workers: int, questions: Mapping[str, Measure]) -> dict[str, Any]:
    """All that is measured of one peer."""
    row: dict[str, Any] = {"name": kind.name, "command": kind.command, "missing": not kind.is_here()}
    if row["missing"]:
        print(f"{kind.name}: missing", flush=True)
        return row
    row["version"] = kind.version()
    for name, measure in questions.items():
        print(f"{kind.name}: {name}", flush=True)
        # A site for each, so that none inherits what another left.
        with site(workers) as place:
            row[name] = answer = _measured(kind(place, CONFIGURATIONS), measure)
        if "error" in answer:
            print(f"    failed: {answer['error']}", flush=True)
    return row


def as_text(results: Mapping[str, Any]) -> str:
    """JSON with times to a tenth of a millisecond: clients do not see more."""
    rounded = json.loads(json.dumps(results), parse_float=lambda number: round(float(number), 4))
    return json.dumps(rounded, indent=1)


# Private


def _measured(peer: Peer, measure: Measure) -> dict[str, Any]:
    """What `measure` finds, or why it cannot."""
    try:
        problem = peer.start()
        return measure(peer) if problem is None else {"error": problem}
    except (OSError, AssertionError, ValueError, subprocess.TimeoutExpired) as error:
        return {"error": f"{type(error).__name__}: {error}; it said: {peer.said()}"}
    finally:
        peer.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.reload", description=__doc__)
    parser.add_argument("--renewals", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2, choices=(1, 2))
    parser.add_argument("--only", choices=[kind.name for kind in PEERS], help="print one, write nothing")
    chosen = parser.parse_args()
    sys.exit(main(chosen.renewals, chosen.workers, chosen.only))
