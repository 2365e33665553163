"""botproxy, which is told nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from bench.peers.peer import Peer, Told, first_line
from bench.peers.python import ENVIRONMENTS

_INSTALLED = ENVIRONMENTS / "botproxy" / "bin" / "python"
PYTHON = str(_INSTALLED) if _INSTALLED.exists() else sys.executable
"""What botproxy runs on: the same as its peers in Python, where `make bench` has set that up."""
_PROGRAM = (PYTHON, "-m", "botproxy")
_PLATFORM = """
import importlib.metadata, platform, ssl
uvloop = importlib.metadata.version('uvloop')
print(f"(Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, uvloop {uvloop})")
"""


class Botproxy(Peer):
    name = "botproxy"
    program = PYTHON
    template = "botproxy.yaml"
    command = "nothing"
    _changes = 0

    @classmethod
    def version(cls) -> str:
        return f"{first_line(*_PROGRAM, '--version')} {first_line(PYTHON, '-c', _PLATFORM)}"

    @property
    def arguments(self) -> Sequence[str]:
        return (*_PROGRAM, "serve", "--config", str(self.config))

    def change_configuration(self) -> Told:
        """SIGHUP with another configuration, which a second team of workers takes over with."""
        self._changes += 1
        self.configure()
        with self.config.open("a") as file:
            file.write(f'headers: {{ set: {{ X-Change: "{self._changes}" }} }}\n')
        os.kill(self.pid, signal.SIGHUP)
        return Told(0.0, None)

    def tell(self) -> Told:
        return Told(0.0, None)


class BotproxyShared(Botproxy):
    """With connections to the bot that all clients share, as others have them; it is not the default."""

    name = "botproxy, shared"
    template = "botproxy-shared.yaml"
