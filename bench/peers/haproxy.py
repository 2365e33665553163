"""HAProxy, one process with a thread for each worker, told in either of its two ways.

`HaproxyCommit` changes the certificate in the memory of the running process; `HaproxyReload`
has the master start a new process, which takes the listening sockets from the old one.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence

from bench.peers.peer import COMMAND_PATIENCE, Peer, Told, first_line, unprivileged


class _Haproxy(Peer):
    program = "haproxy"
    template = "haproxy.cfg"

    @classmethod
    def version(cls) -> str:
        return first_line("haproxy", "-v").partition(" - ")[0]

    @property
    def workers(self) -> int:
        return 1

    @property
    def arguments(self) -> Sequence[str]:
        return ("haproxy", "-W", "-f", str(self.config))

    def settings(self) -> Mapping[str, str]:
        account = unprivileged()
        return {"account": f"user {account[0]}\n    group {account[1]}" if account else ""}

    def configure(self) -> None:
        # It looks for the key of NAME in NAME.key (ssl-load-extra-files).
        fullchain = self.site.lineage.fullchain
        key = fullchain.with_name(f"{fullchain.name}.key")
        if not key.is_symlink():
            key.symlink_to(self.site.lineage.privkey.name)
        super().configure()


class HaproxyCommit(_Haproxy):
    name = "HAProxy, by socket"
    command = "set ssl cert, commit ssl cert"

    def tell(self) -> Told:
        began = time.monotonic()
        lineage = self.site.lineage
        name = lineage.fullchain
        pem = lineage.fullchain.read_text() + lineage.privkey.read_text()
        says = self._ask(f"set ssl cert {name} <<\n{pem}\n")
        if "Transaction" in says:
            says = self._ask(f"commit ssl cert {name}\n")
        succeeded = "Success!" in says
        if not succeeded:
            self._ask(f"abort ssl cert {name}\n")
        return Told(time.monotonic() - began, succeeded, "" if succeeded else self.shorten(says))

    def _ask(self, command: str) -> str:
        answer = b""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(COMMAND_PATIENCE)
            sock.connect(str(self.site.directory / "stats.sock"))
            sock.sendall(command.encode("ascii"))
            while more := sock.recv(65536):
                answer += more
        return answer.decode()


class HaproxyReload(_Haproxy):
    name = "HAProxy, by reload"
    command = "SIGUSR2 to the master"

    def tell(self) -> Told:
        os.kill(self.pid, signal.SIGUSR2)
        return Told(0.0, None)
