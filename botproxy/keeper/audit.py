"""The record of every change of a certificate: one JSON line each, appended and synced.

Lines are for machines and for the day after: what was served before and since, why, how
long each step took, which workers. No secret is in them. Nothing reads them here.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append(file: Path, entry: Mapping[str, Any]) -> None:
    """Write `entry` behind everything that is there. Raises OSError when the disk fails."""
    line = json.dumps(entry, separators=(",", ":")).encode("ascii") + b"\n"
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        before = os.fstat(fd).st_size
        if os.write(fd, line) != len(line):
            os.ftruncate(fd, before)  # a full disk: no half lines
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
    finally:
        os.close(fd)
