"""Memory of every peer's process tree at rest, after its first request, with no other peer beside it.

Pages of libraries are shared by all that use them, and PSS divides them among these: beside
five servers in Python a sixth looks smaller than it is for somebody who runs it alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bench.compare import accounting
from bench.compare.fleet import fleet
from bench.peers.peer import Peer

LOOK, PATIENCE = 0.5, 10.0
"""Seconds between two looks, and until it must have come to rest."""
REST = 0.002
"""Share by which two looks may differ at rest."""


def measure(kinds: Sequence[type[Peer]]) -> dict[str, Any]:
    """Bytes (PSS) and processes, for each peer."""
    peers: dict[str, dict[str, Any]] = {}
    problems: dict[str, str] = {}
    for kind in kinds:
        with fleet([kind], "ecdsa") as ready:
            problems |= ready.problems
            for name, peer in ready.peers.items():
                seen = _settled(peer.pid)
                if seen is None:
                    problems[name] = f"not at rest after {PATIENCE:g} s"
                else:
                    peers[name] = {"at_rest": seen, "processes": len(accounting.tree(peer.pid))}
    return {"problems": problems, "peers": peers}


# Private


def _settled(pid: int) -> int | None:
    """Once it moves no more."""
    deadline = time.monotonic() + PATIENCE
    last = accounting.memory(pid)
    while time.monotonic() < deadline:
        time.sleep(LOOK)
        now = accounting.memory(pid)
        if abs(now - last) <= REST * last:
            return now
        last = now
    return None
