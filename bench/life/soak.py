"""A long life in short: a steady load and many reloads, and what the processes hold."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.life.clients import Clients
from bench.life.front import running
from tests.harness import Bot

RATE = 50.0
RELOAD_EVERY = 10.0
LARGEST_SLOPE = 1e6
"""Bytes an hour."""
LARGEST_GROWTH = 4
"""Descriptors."""


def main(minutes: float) -> int:
    points: list[tuple[float, int, int]] = []
    with (
        tempfile.TemporaryDirectory() as name,
        Bot() as bot,
        running(Path(name), bot.url) as front,
        Clients(front.port, front.trust, 8, RATE) as clients,
    ):
        began = time.monotonic()
        while (passed := time.monotonic() - began) < minutes * 60:
            front.reload()
            front.settle()
            # Just before the next reload, when everybody has been there for the same time.
            time.sleep(max(0.0, began + passed + RELOAD_EVERY - time.monotonic() - 0.5))
            resident, descriptors = front.holds()
            points.append((time.monotonic() - began, resident, descriptors))
            if len(points) % 6 == 0:
                print(
                    f"{points[-1][0] / 60:5.1f} min  {resident / 2**20:6.1f} MiB  {descriptors} fds",
                    flush=True,
                )
            time.sleep(max(0.0, began + passed + RELOAD_EVERY - time.monotonic()))
    warm = points[len(points) // 5 :]
    slope = _slope([(at, float(resident)) for at, resident, _ in warm]) * 3600
    growth = max(fds for _, _, fds in warm[-6:]) - max(fds for _, _, fds in warm[:6])
    print(f"requests     {clients.done}, failed {len(clients.failures)}")
    print(f"reloads      {len(points)}")
    print(f"memory       {slope / 1e6:+.2f} MB/h over all processes")
    print(f"descriptors  {growth:+d}")
    for failure in clients.failures[:20]:
        print(f"  {failure.why}")
    return 1 if clients.failures or slope > LARGEST_SLOPE or growth > LARGEST_GROWTH else 0


def _slope(points: list[tuple[float, float]]) -> float:
    """Of the line nearest to `points`, by least squares."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
