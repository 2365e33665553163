"""Does a peer notice a renewal that nobody tells it of?

The files are replaced, and nothing else is done. Connections are made one after the other
until the new certificate has come, or long enough. A peer that did not notice once is not
asked again: it has no reason to the next time.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from bench.peers.peer import Peer
from bench.reload import clients
from bench.reload.sightings import Changeover, changeover

PATIENCE = 15.0
ROUNDS = 5
PAUSE = 0.01


def measure(peer: Peer) -> dict[str, Any]:
    """The samples of `peer`, which runs."""
    samples: list[dict[str, Any]] = []
    while len(samples) < ROUNDS and (not samples or samples[-1]["complete"] is not None):
        time.sleep(1.0)  # what came before shall be over
        serial = peer.site.lineage.renew()
        samples.append(asdict(until_served(peer, serial, time.monotonic())))
    return {"waited_seconds": PATIENCE, "samples": samples}


def until_served(peer: Peer, serial: str, renewed: float) -> Changeover:
    """Make connections until every worker serves `serial`; what they met."""
    context = clients.client(peer.site.lineage.ca, "1.3")
    made: list[clients.Attempt] = []
    while True:
        made.append(clients.attempt(peer.site.port, context, f"/unasked/{len(made)}"))
        change = changeover(made, serial, renewed)
        if change.is_settled(peer.workers):
            return change
        if change.first is None and time.monotonic() > renewed + PATIENCE:
            return change
        if time.monotonic() > renewed + 2 * PATIENCE:
            return change
        time.sleep(PAUSE)
