"""nginx, told by `nginx -s reload`: new workers beside the old ones, which drain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.peers.peer import Peer, Told, first_line, unprivileged


class Nginx(Peer):
    name = "nginx"
    program = "nginx"
    template = "nginx.conf"
    command = "nginx -s reload"

    @classmethod
    def version(cls) -> str:
        return first_line("nginx", "-v").removeprefix("nginx version: ")

    @property
    def arguments(self) -> Sequence[str]:
        return (*self._program, "-g", "daemon off;")

    def settings(self) -> Mapping[str, str]:
        account = unprivileged()
        return {"account": f"user {account[0]} {account[1]};" if account else ""}

    def tell(self) -> Told:
        return self.run(*self._program, "-s", "reload")

    @property
    def _program(self) -> Sequence[str]:
        return ("nginx", "-p", str(self.site.directory), "-c", str(self.config))


class NginxAlike(Nginx):
    """Set up to do no more than botproxy does by default."""

    name = "nginx, alike"
    template = "nginx-alike.conf"
