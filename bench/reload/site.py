"""A place for a peer whose certificate is renewed, with a bot that runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.lineage import Lineage
from bench.reload import bot
from bench.site import Site
from tests.harness import free_port


@contextmanager
def site(workers: int) -> Iterator[Site]:
    """A new one, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="reload-") as name:
        directory = Path(name)
        # Workers that have given up root must reach the bot's socket; the keys lie in directories of 0700.
        os.chmod(directory, 0o755)
        path = directory / "bot.sock"
        with bot.running(path):
            yield Site(directory, Lineage(directory), free_port(), str(path), workers)
