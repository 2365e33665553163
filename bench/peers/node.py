"""A proxy of thirty lines on Node's https server, as guides for bots have it; it knows no reload."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from bench.peers.peer import Peer, Told, first_line


class Node(Peer):
    name = "Node"
    program = "node"
    template = "node.js"
    command: ClassVar[str] = ""

    @classmethod
    def version(cls) -> str:
        return f"{first_line('node', '--version')}, OpenSSL {first_line('node', '-p', _OPENSSL)}"

    @property
    def workers(self) -> int:
        return 1

    @property
    def arguments(self) -> Sequence[str]:
        lineage = self.site.lineage
        return (
            "node",
            str(self.config),
            str(self.site.port),
            self.site.bot,
            str(lineage.fullchain),
            str(lineage.privkey),
        )

    def tell(self) -> Told:
        raise NotImplementedError("it knows no reload")


_OPENSSL = "process.versions.openssl"
