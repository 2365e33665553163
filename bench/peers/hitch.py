"""hitch, which ends TLS and forwards bytes; told by SIGHUP."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence

from bench.peers.peer import Peer, Told, first_line, unprivileged


class Hitch(Peer):
    name = "hitch"
    program = "hitch"
    template = "hitch.conf"
    command = "SIGHUP"

    @classmethod
    def version(cls) -> str:
        return first_line("hitch", "--version")

    @property
    def arguments(self) -> Sequence[str]:
        return ("hitch", f"--config={self.config}")

    def settings(self) -> Mapping[str, str]:
        account = unprivileged()
        host, _, port = self.site.bot.partition(":")
        return {
            "host": host,
            "botport": port,
            "account": f'user = "{account[0]}"\ngroup = "{account[1]}"' if account else "",
        }

    def tell(self) -> Told:
        os.kill(self.pid, signal.SIGHUP)
        return Told(0.0, None)
