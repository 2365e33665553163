"""What do clients notice of a renewal, and how long are they given the old certificate?

While several processes make a new connection for every request, the certificate is
renewed many times, each time told in the peer's own way. A renewal is over when enough
connections in a row, over all workers, were given the new one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.peers.peer import Peer
from bench.reload.clients import Attempt, Clients
from bench.reload.sightings import changeover, failures

PATIENCE = 15.0
WARM_UP = 2.0
PAUSE = 0.5
"""Seconds from one renewal to the next, once it is over."""
CLIENT_PAUSE = 0.005
"""Short enough to meet a peer that is away for a moment."""
KEPT_FAILURES = 100


def measure(peer: Peer, renewals: int) -> dict[str, Any]:
    """Counts and samples over `renewals` of `peer`, which runs."""
    with Clients(peer.site.port, peer.site.lineage.ca, CLIENT_PAUSE) as clients:
        time.sleep(WARM_UP)
        began = time.monotonic()
        samples = []
        for _ in range(renewals):
            samples.append(_renew(peer, clients))
            time.sleep(PAUSE)
        seconds = time.monotonic() - began
    attempts = clients.attempts
    load_average = os.getloadavg()[0]
    failed = [attempt for attempt in attempts if attempt.failure is not None]
    return {
        "seconds": round(seconds, 1),
        "load_average": round(load_average, 2),
        "connections": len(attempts),
        "failures": dict(failures(attempts)),
        "failed": [asdict(attempt) for attempt in failed[:KEPT_FAILURES]],
        "connection_seconds": _percentiles([attempt.ended - attempt.began for attempt in attempts]),
        "renewals": samples,
    }


def _renew(peer: Peer, clients: Clients) -> dict[str, Any]:
    since = len(clients.attempts)
    serial = peer.site.lineage.renew()
    renewed = time.monotonic()
    told = peer.tell()

    def settled(attempts: Sequence[Attempt]) -> bool:
        return changeover(attempts, serial, renewed).is_settled(peer.workers)

    clients.wait(settled, PATIENCE, since)
    change = asdict(changeover(clients.attempts[since:], serial, renewed))
    return {"renewed": renewed, **change, "command": asdict(told)}


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        name: round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 4)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }
