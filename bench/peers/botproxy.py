"""botproxy, which is told nothing."""

from __future__ import annotations

import os
import platform
import signal
import ssl
import sys
from collections.abc import Sequence

from bench.peers.peer import Peer, Told, first_line

_PROGRAM = (sys.executable, "-m", "botproxy")


class Botproxy(Peer):
    name = "botproxy"
    program = sys.executable
    template = "botproxy.yaml"
    command = "nothing"
    _changes = 0

    @classmethod
    def version(cls) -> str:
        said = first_line(*_PROGRAM, "--version")
        return f"{said} (Python {platform.python_version()}, {ssl.OPENSSL_VERSION})"

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
