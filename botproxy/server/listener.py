"""The accept loop of one listening socket.

Takes connections in bursts and gives each to `start`; pauses while it is told to
(too many handshakes) or while the machine has no file descriptors left, which
it survives and says once. It decides nothing about a connection.

Before: `server.sockets`. After: `server.reception`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import select
import socket
from collections.abc import Callable
from resource import RLIMIT_NOFILE, getrlimit
from typing import Any

logger = logging.getLogger(__name__)

BURST = 32
"""Connections taken in one turn of the loop, so that a flood does not starve those already there."""
EXHAUSTED_PAUSE = 0.2
"""Seconds until the next attempt after EMFILE and its like."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_GAVE_UP = (
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.EPERM,
    errno.EINTR,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENONET,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
)
"""Errors of the connection, not of the socket that listens (accept(2))."""


class Listener:
    """Accepts on `sock` (non-blocking) between `start` and `stop`."""

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        start: Callable[[socket.socket, Any], None],
        relieve: Callable[[], object],
    ) -> None:
        """`relieve` frees descriptors that can be spared; called when there are none left."""
        self.sock = sock
        self._loop = loop
        self._start = start
        self._relieve = relieve
        self._kind = int(sock.family), int(sock.type), sock.proto
        self._queue = select.poll()
        self._queue.register(sock, select.POLLIN)
        self._newest = 0
        """The descriptor given last; the kernel gives the lowest that is free."""
        self._accepting = False
        self._held = True
        self._starved = False
        self._stopped = False
        self._exhausted = False

    def start(self) -> None:
        """Accept from now on."""
        self._held = False
        self._update()

    def pause(self) -> None:
        """Leave connections in the kernel's queue until `start`."""
        self._held = True
        self._update()

    def _update(self) -> None:
        wanted = not (self._held or self._starved or self._stopped)
        if wanted and not self._accepting:
            self._loop.add_reader(self.sock.fileno(), self._accept)
        elif self._accepting and not wanted:
            self._loop.remove_reader(self.sock.fileno())
        self._accepting = wanted

    def stop(self) -> None:
        """Take what is already queued, so that nobody who got through is reset, and close."""
        if self._stopped:
            return
        # Before anything is taken: whoever is taken may ask for more, which would watch the socket again.
        self._stopped = True
        self._update()
        while self._accept_one():
            pass
        self.sock.close()

    def _accept(self) -> None:
        for _ in range(BURST):
            if not self._accepting or not self._accept_one():
                return
            # Asking costs a tenth of being refused one more. Who got the last descriptor needs another for
            # the bot, though: then the refusal makes room.
            if not self._queue.poll(0) and self._newest + 1 < getrlimit(RLIMIT_NOFILE)[0]:
                return

    def _accept_one(self) -> bool:
        """Whether there may be more."""
        try:
            # What `accept` does, without the enums it makes of numbers: they cost more than all the rest.
            number, address = self.sock._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _GAVE_UP:
                return True
            self._suffer(error)
            return False
        if self._exhausted:
            self._exhausted = False
            logger.info("accepting again")
        self._newest = number
        sock = socket.socket(*self._kind, number)
        sock.setblocking(False)
        self._start(sock, address)
        return True

    def _suffer(self, error: OSError) -> None:
        if not self._exhausted:
            self._exhausted = True
            logger.error(
                "no file descriptors left, accepting is delayed"
                if error.errno in _EXHAUSTED
                else "accepting fails and is tried again",
                extra={
                    "data": {
                        "errno": errno.errorcode[error.errno or 0],
                        "hint": "raise LimitNOFILE or lower limits.connections",
                    }
                },
            )
        self._relieve()
        if not self._starved:
            self._starved = True
            self._update()
            self._loop.call_later(EXHAUSTED_PAUSE, self._recover)

    def _recover(self) -> None:
        self._starved = False
        self._update()
