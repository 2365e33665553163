"""The rule of a hundred: what an attack cost the proxy, against what it cost its sender.

CPU is that of all processes of the proxy, user and system; memory is how much further their
resident bytes rose at the highest. Below the floors nothing can be told apart from noise.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.harness import Proxied, forget_peak, peak_of, rss_of

LIMIT = 100.0
MEMORY_FLOOR = 4 * 1024 * 1024
"""Bytes that any first use of something may take."""
CPU_FLOOR = 0.01
"""Seconds, one tick of the kernel's accounts: an effort below it counts as this much."""
_TICK = 1 / os.sysconf("SC_CLK_TCK")


def cpu_of(pids: Iterable[int]) -> float:
    """Seconds that processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks * _TICK


@dataclass(frozen=True, slots=True)
class Bill:
    """One attack."""

    cpu: float
    """Seconds of the proxy."""
    memory: int
    """Bytes by which it grew."""
    sender_cpu: float
    sent: int
    """Bytes that the sender put on the wire."""

    @property
    def cpu_ratio(self) -> float:
        return max(0.0, self.cpu) / max(self.sender_cpu, CPU_FLOOR)

    @property
    def memory_ratio(self) -> float:
        return max(0, self.memory - MEMORY_FLOOR) / max(self.sent, 1)


class Meter:
    """What a proxy has used since `begin`."""

    def __init__(self, proxied: Proxied) -> None:
        self._proxied = proxied
        self._pids = self._processes()
        self._cpu = 0.0
        self._rss: dict[int, int] = {}

    def begin(self) -> Self:
        for pid in self._pids:
            forget_peak(pid)
        self._rss = {pid: rss_of(pid) for pid in self._pids}
        self._cpu = cpu_of(self._pids)
        return self

    def cpu(self) -> float:
        return cpu_of(self._pids) - self._cpu

    def memory(self) -> int:
        """Of all processes: how far above the beginning each was at its highest."""
        assert self._processes() == self._pids, "a process was replaced"
        return sum(max(0, peak_of(pid) - self._rss[pid]) for pid in self._pids)

    def _processes(self) -> tuple[int, ...]:
        return (self._proxied.process.pid, *sorted(self._proxied.children()))
