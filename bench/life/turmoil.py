"""Everything at once: reloads, upgrades and killed workers under a constant load."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.life.clients import Clients, Failure
from bench.life.front import Front, running
from tests.harness import Bot

RELOADS, UPGRADES = 50, 5
RATE = 200.0
CLIENTS = 16
KILL_EVERY = 5.0
IN_FLIGHT = 1.0
"""Seconds after a kill in which a failure may be owed to it."""


def main(requests: int) -> int:
    with tempfile.TemporaryDirectory() as name, Bot() as bot, running(Path(name), bot.url) as front:
        seconds = requests / RATE
        with Clients(front.port, front.trust, CLIENTS, RATE) as clients:
            kills = _change_everything(front, clients, requests, seconds)
            while clients.done < requests:
                time.sleep(0.05)
        front.settle()
        resident, descriptors = front.holds()
    owed = [failure for failure in clients.failures if _is_owed(failure, kills)]
    failed = [failure for failure in clients.failures if failure not in owed]
    times = sorted(clients.times)
    print(f"requests           {clients.done}")
    print(f"reloads, upgrades  {RELOADS}, {UPGRADES}")
    print(f"workers killed     {len(kills)}")
    print(f"in flight on them  {len(owed)}")
    print(f"failed otherwise   {len(failed)}")
    print(
        f"median, p99, worst {median(times) * 1e3:.1f}, {times[len(times) * 99 // 100] * 1e3:.1f}, ", end=""
    )
    print(f"{times[-1] * 1e3:.0f} ms")
    print(f"afterwards         {resident / 2**20:.0f} MiB, {descriptors} descriptors in 4 processes")
    for failure in failed[:20]:
        print(f"  {failure.why}")
    return 1 if failed else 0


def _change_everything(front: Front, clients: Clients, requests: int, seconds: float) -> list[float]:
    """When workers were killed, monotonic seconds."""
    steps = ["reload"] * RELOADS + ["upgrade"] * UPGRADES
    random.Random(1).shuffle(steps)
    kills = []
    began = time.monotonic()
    kill_at = began + KILL_EVERY
    for number, step in enumerate(steps):
        at = began + (number + 0.5) * seconds / len(steps)
        while (now := time.monotonic()) < at:
            if now >= kill_at:
                kill_at += KILL_EVERY
                if workers := front.workers():
                    os.kill(random.choice(workers), signal.SIGKILL)
                    kills.append(time.monotonic())
            time.sleep(min(0.05, at - now))
        front.reload() if step == "reload" else front.upgrade()
    return kills


def _is_owed(failure: Failure, kills: list[float]) -> bool:
    return any(failure.connected <= kill <= failure.failed <= kill + IN_FLIGHT for kill in kills)
