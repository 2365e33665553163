"""The place where questions come in: the admin socket, and whose it is.

Bound by the supervisor or inherited from a predecessor, handed to keepers. It is removed by
whoever serves last: a successor that fails leaves it to its predecessor.

Before: `server.supervisor`. The keeper answers (`keeper.admin`).
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from botproxy.config.state import admin_socket
from botproxy.keeper import admin

if TYPE_CHECKING:
    from botproxy.config.schema import Config


class Desk:
    """The admin socket of one supervisor, if it has one."""

    def __init__(self, inherited: tuple[Path, socket.socket] | None) -> None:
        self.place = inherited
        self._is_ours = inherited is None

    @property
    def sock(self) -> socket.socket | None:
        return None if self.place is None else self.place[1]

    def open(self, config: Config) -> None:
        """Bind it unless it was inherited. Raises ConfigError when it cannot be made."""
        path = admin_socket(config)
        if self.place is not None and self.place[0] != path:
            self.place[1].close()
            self.place, self._is_ours = None, True
        if self.place is None and path is not None:
            self.place = path, admin.bind(path)

    def take_over(self) -> None:
        """Whoever it was inherited from gives it up."""
        self._is_ours = True

    def give_away(self) -> None:
        """A successor has it."""
        self._is_ours = False

    def close(self) -> None:
        """Nobody answers any more; its name is removed if it is ours."""
        if self.place is not None:
            path, sock = self.place
            sock.close()
            if self._is_ours:
                path.unlink(missing_ok=True)
