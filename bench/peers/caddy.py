"""Caddy with certificate files of one's own, told by `caddy reload --force`, as its systemd unit does.

Without --force it finds its configuration unchanged, and reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.peers.peer import Peer, Told, first_line
from bench.site import Site
from tests.harness import free_port


class Caddy(Peer):
    name = "Caddy"
    program = "caddy"
    template = "Caddyfile"
    command = "caddy reload --force"

    def __init__(self, site: Site, configurations: Path) -> None:
        super().__init__(site, configurations)
        self._admin = f"127.0.0.1:{free_port()}"

    @classmethod
    def version(cls) -> str:
        return first_line("caddy", "version")

    @property
    def workers(self) -> int:
        return 1

    @property
    def arguments(self) -> Sequence[str]:
        return ("caddy", "run", "--config", str(self.config))

    def settings(self) -> Mapping[str, str]:
        return {"admin": self._admin}

    def environment(self) -> Mapping[str, str]:
        directory = str(self.site.directory)
        return {
            "GOMAXPROCS": str(self.site.workers),
            "HOME": directory,
            "XDG_CONFIG_HOME": directory,
            "XDG_DATA_HOME": directory,
        }

    def tell(self) -> Told:
        return self.run("caddy", "reload", "--config", str(self.config), "--force")
