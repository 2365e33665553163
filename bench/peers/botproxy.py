"""botproxy, which is told nothing."""

from __future__ import annotations

import platform
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

    @classmethod
    def version(cls) -> str:
        said = first_line(*_PROGRAM, "--version")
        return f"{said} (Python {platform.python_version()}, {ssl.OPENSSL_VERSION})"

    @property
    def arguments(self) -> Sequence[str]:
        return (*_PROGRAM, "serve", "--config", str(self.config))

    def tell(self) -> Told:
        return Told(0.0, None)
