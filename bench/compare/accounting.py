"""What the operating system says a process tree has used: CPU and memory. Decides nothing.

CPU comes from the scheduler (`schedstat`, nanoseconds), for all threads of all processes
of the tree; user and system time together. What a thread is doing at this very moment may
be missing from it, so it is read when the tree is at rest. Threads that have ended are in
no `schedstat`: where processes come and go, `ticks` counts in `stat`, by hundredths of a
second, with the children that were waited for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PSS = re.compile(r"^Pss: +(\d+) kB$", re.MULTILINE)


def tree(root: int) -> list[int]:
    """`root` and all that descend from it."""
    found = [root]
    for pid in found:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            pass  # it ended while we looked
    return found


def threads(root: int) -> dict[int, float]:
    """Seconds that each thread of the tree has used."""
    found = {}
    for pid in tree(root):
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except (FileNotFoundError, ProcessLookupError):
            pass  # as above
    return found


def cpu(root: int) -> float:
    """Seconds that the tree has used, in threads that are still there."""
    return sum(threads(root).values())


def ticks(root: int) -> float:
    """Seconds that the tree and its ended, waited-for children have used."""
    return sum(_stat(root, range(11, 15)))


def kernel(root: int) -> float:
    """How many of these seconds were the kernel's."""
    return sum(_stat(root, (12, 14)))


def memory(root: int) -> int:
    """Bytes of the tree: shared pages are divided among those that share them (PSS)."""
    total = 0
    for pid in tree(root):
        try:
            total += sum(map(int, _PSS.findall(Path(f"/proc/{pid}/smaps_rollup").read_text())))
        except (FileNotFoundError, ProcessLookupError):
            pass  # as above
    return total * 1024


def _stat(root: int, fields: Iterable[int]) -> Iterator[float]:
    """Those fields of `stat` (proc(5), without the first two), in seconds, of every process."""
    for pid in tree(root):
        try:
            values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # its parent has it now
        yield from (int(values[field]) / _TICK for field in fields)
