"""On what, and of what, the figures are: machine, Python, OpenSSL, uvloop and every peer."""

from __future__ import annotations

import os
import platform
import ssl
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.peers.peer import Peer


def everything(kinds: Sequence[type[Peer]]) -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "uvloop": metadata.version("uvloop"),
        "root": os.geteuid() == 0,
        "load_average": os.getloadavg()[0],
        "peers": {kind.name: kind.version() if kind.is_here() else "missing" for kind in kinds},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
