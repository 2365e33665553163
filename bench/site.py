"""What every peer stands between: certificate files, a port of its own, a bot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.lineage import Lineage


@dataclass(frozen=True, slots=True)
class Site:
    """The place of one peer."""

    directory: Path
    """For its configuration, sockets and logs; everybody may enter."""
    lineage: Lineage
    port: int
    """Where it shall serve, on 127.0.0.1."""
    bot: str
    """Path of the socket, or host:port, that it shall forward to."""
    workers: int
