"""What every peer stands between, the same for each: certificate files, a free port, a bot."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.reload import bot
from bench.reload.lineage import Lineage
from tests.harness import free_port


@dataclass(frozen=True, slots=True)
class Site:
    """The place of one peer."""

    directory: Path
    """For its configuration, sockets and logs; everybody may enter."""
    lineage: Lineage
    port: int
    """Where it shall serve, on 127.0.0.1."""
    bot: Path
    """The socket that it shall forward to."""
    workers: int


@contextmanager
def site(workers: int) -> Iterator[Site]:
    """A new one, with a bot that runs; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="reload-") as name:
        directory = Path(name)
        # Workers that have given up root must reach the bot's socket; the keys lie in directories of 0700.
        os.chmod(directory, 0o755)
        path = directory / "bot.sock"
        with bot.running(path):
            yield Site(directory, Lineage(directory), free_port(), path, workers)
