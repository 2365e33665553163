"""What does a renewal that was cut off do, a new certificate beside the old key?

The peer's own command is given, and connections say what is served. Then the peer is
stopped and started with these files, for machines restart without asking first.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.peers.peer import Peer
from bench.reload import clients
from bench.reload.clients import Attempt
from bench.reload.sightings import failures

TRIES = 50
REACTION = 3.0
"""Seconds from the command on, until what is served counts."""


def measure(peer: Peer) -> dict[str, Any]:
    """What `peer` does, which runs; afterwards it does not."""
    old = _sample(peer, 1)[0].serial
    new = peer.site.lineage.renew_all_but_the_key()
    told = peer.tell()
    time.sleep(REACTION)
    names = {old: "old", new: "new"}
    running = _served(_sample(peer, TRIES), names)
    peer.stop()
    problem = peer.start()
    restarted = {"says": problem} if problem is not None else _served(_sample(peer, TRIES), names)
    peer.stop()
    return {
        "command": asdict(told),
        "running": running,
        "restart": {"starts": problem is None, **restarted},
    }


def _sample(peer: Peer, count: int) -> list[Attempt]:
    contexts = [clients.client(peer.site.lineage.ca, version) for version in clients.VERSIONS]
    return [
        clients.attempt(peer.site.port, contexts[number % len(contexts)], f"/mismatch/{number}")
        for number in range(count)
    ]


def _served(attempts: Sequence[Attempt], names: dict[str, str]) -> dict[str, Any]:
    served = Counter(names.get(attempt.serial, "another") for attempt in attempts if attempt.serial)
    return {"connections": len(attempts), "served": dict(served), "failures": dict(failures(attempts))}
