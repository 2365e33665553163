"""The record of every change of a certificate: one JSON line each, appended and synced.

Lines are for machines and for the day after: what was served before and since, why, how
long each step took, which workers. No secret is in them. Only the last line about a
certificate is ever read again, to see whether what is served at a start is known.
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
    fd = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        before = os.fstat(fd).st_size
        if before and os.pread(fd, 1, before - 1) != b"\n":
            line = b"\n" + line  # behind what a power failure left of a line
        if os.write(fd, line) != len(line):
            os.ftruncate(fd, before)  # a full disk: no half lines
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
    finally:
        os.close(fd)


def served_last(file: Path, certificate: str) -> Mapping[str, Any] | None:
    """What the last line about `certificate` says is served; None when there is none."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - _TAIL))
            lines = opened.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
            if entry["certificate"] == certificate:
                served = entry["new"] if entry["result"] in ("active", "unverified") else entry["old"]
                return served if isinstance(served, dict) else None
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # the first of the tail may be half a line
    return None


_TAIL = 1024 * 1024
"""Bytes at the end of the file that are looked at: about a thousand lines."""
