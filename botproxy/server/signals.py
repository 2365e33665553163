"""Signals as something to wait for beside sockets: each is a byte that can be read.

Only the supervisor answers signals (`server.children` says which); its children give this
up as they begin. What follows from a signal is not known here.
"""

from __future__ import annotations

import signal
import socket
from typing import Self

from botproxy.server.children import SIGNALS

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
FOR_BOTS = (signal.SIGQUIT, signal.SIGUSR1, signal.SIGWINCH)
"""What a bot of ours is told instead of us; SIGTERM it is told when its deliveries are answered."""


class Signals:
    """Between `with` and its end, signals do nothing but arrive here."""

    def __init__(self) -> None:
        self.sock, self._far = socket.socketpair()
        """Readable when there are any."""
        for each in self.sockets:
            each.setblocking(False)

    @property
    def sockets(self) -> list[socket.socket]:
        """What nobody else may hold."""
        return [self.sock, self._far]

    def arrived(self) -> set[int]:
        """Those since the last time."""
        return set(self.sock.recv(4096))

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        signal.set_wakeup_fd(self._far.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for each in self.sockets:
            each.close()
