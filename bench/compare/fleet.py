"""All peers at once, on one core, with one certificate and one bot; they take turns at being asked.

Those that wait do nothing: what their timers cost is not worth starting them anew for
every round, which would measure cold caches and the first garbage collection.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.lineage import Keys, Lineage
from bench.peers.botproxy import Botproxy, BotproxyShared
from bench.peers.caddy import Caddy
from bench.peers.haproxy import HaproxyReload
from bench.peers.hitch import Hitch
from bench.peers.nginx import Nginx, NginxAlike
from bench.peers.node import Node
from bench.peers.peer import Peer
from bench.peers.python import Granian, Hypercorn, MitmProxy, Uvicorn
from bench.site import Site
from tests.harness import free_port

CONFIGURATIONS = Path(__file__).parent / "peers"
BASE = Nginx.name
"""Whose figures the ratios are to."""
_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = _CORES[0], _CORES[-1]
BOT_PATIENCE = 10.0


class Haproxy(HaproxyReload):
    name = "HAProxy"


class HaproxyShared(Haproxy):
    """With connections to the bot that also a client's first request may take; it is not the default."""

    name = "HAProxy, shared"

    def configure(self) -> None:
        super().configure()
        with self.config.open("a") as file:
            file.write("    http-reuse always\n")


PEERS: tuple[type[Peer], ...] = (
    Botproxy,
    BotproxyShared,
    Nginx,
    NginxAlike,
    Haproxy,
    HaproxyShared,
    Caddy,
    Hitch,
    Node,
    Granian,
    Uvicorn,
    Hypercorn,
    MitmProxy,
)


@dataclass(frozen=True, slots=True)
class Fleet:
    """What runs."""

    directory: Path
    lineage: Lineage
    bot: int
    """Process of the bot."""
    bot_port: int
    workers: int
    peers: dict[str, Peer] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    """Why others do not run, by their name."""


@contextmanager
def fleet(
    kinds: Sequence[type[Peer]], keys: Keys, workers: int = 1, cores: str = str(SERVER_CORE)
) -> Iterator[Fleet]:
    """Start all of `kinds`, stop them at the end."""
    with tempfile.TemporaryDirectory(prefix="compare-") as name:
        directory = Path(name)
        os.chmod(directory, 0o755)  # workers that have given up root have their own files below
        port = free_port()
        with _bot(port) as bot:
            ready = Fleet(directory, Lineage(directory, keys), bot, port, workers)
            try:
                for kind in kinds:
                    _start(kind, ready, cores)
                yield ready
            finally:
                for peer in ready.peers.values():
                    peer.stop()


def placed(kind: type[Peer], ready: Fleet, folder: str) -> Peer:
    """One that does not run yet, with a folder of its own."""
    place = ready.directory / folder
    place.mkdir(mode=0o755)
    bot = f"127.0.0.1:{ready.bot_port}"
    return kind(Site(place, ready.lineage, free_port(), bot, ready.workers), CONFIGURATIONS)


# Private


def _start(kind: type[Peer], ready: Fleet, cores: str) -> None:
    if not kind.is_here():
        ready.problems[kind.name] = "missing"
        return
    peer = ready.peers[kind.name] = placed(
        kind, ready, kind.__name__
    )  # so that it ends also if we are cut here
    problem = peer.start("taskset", "-c", cores)
    if problem is not None:
        peer.stop()
        del ready.peers[kind.name]
        ready.problems[kind.name] = f"does not start: {problem}"


@contextmanager
def _bot(port: int) -> Iterator[int]:
    command = ("taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "bench.compare.bot", str(port))
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + BOT_PATIENCE
        while not _listens(port):
            assert process.poll() is None, "the bot ended"
            assert time.monotonic() < deadline, "the bot does not listen"
            time.sleep(0.02)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:

    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
