"""On what, and of what, the figures are: machine, Python, OpenSSL, uvloop and every peer."""

from __future__ import annotations

import os
import platform
import ssl
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.micro.trees import git
from bench.peers.peer import Peer, first_line

MADE = ("bench/results", "bench/charts", "bench/RESULTS.md")
"""What a run writes itself."""


def everything(kinds: Sequence[type[Peer]]) -> dict[str, Any]:
    return {
        "commit": _commit(),
        "system": platform.platform(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "system_openssl": first_line("openssl", "version"),
        "uvloop": metadata.version("uvloop"),
        "root": os.geteuid() == 0,
        "load_average": os.getloadavg()[0],
        "peers": {kind.name: kind.version() if kind.is_here() else "missing" for kind in kinds},
    }


def _commit() -> str:
    """What the tree is of, and whether it is as it was committed; empty without git."""
    head = git("rev-parse", "--short=12", "HEAD")
    changes = git("status", "--porcelain", "--", ".", *(f":!{path}" for path in MADE))
    if head is None or changes is None:
        return ""
    return f"{head}, changed" if changes else head


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
