"""Tells the service manager how we are (sd_notify(3)), where there is one that asks.

The address is in $NOTIFY_SOCKET; without it every call does nothing, and a manager that
does not listen is no reason to fail. One whose queue is full is waited for a moment when it
would take the service for another than it is without that message; a sign of life may be lost,
because the next one follows. What is told when is `server.supervisor`'s affair.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping

PATIENCE = 1.0
"""Seconds that a message which comes once waits for a manager that is busy."""


class Notifier:
    """One service manager, or none."""

    def __init__(self, env: MutableMapping[str, str]) -> None:
        """Takes $NOTIFY_SOCKET, $WATCHDOG_USEC and $WATCHDOG_PID out of the environment `env`."""
        address = env.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        interval, pid = env.pop("WATCHDOG_USEC", ""), env.pop("WATCHDOG_PID", "")
        for_us = pid in ("", str(os.getpid()))
        self.watchdog = int(interval) / 2e6 if interval.isdecimal() and for_us else None
        """Seconds after which `alive` must say so again: half of what the manager grants; None: never."""
        self._alive_at = 0.0
        self._status = ""

    def ready(self, status: str) -> None:
        """Everything serves; also the end of a reload."""
        self._status = status
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        # systemd waits for the READY that follows, and tells old from new by this time.
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reloading")

    def stopping(self) -> None:
        self._tell("STOPPING=1", "STATUS=stopping")

    def alive(self, now: float, status: str) -> None:
        """We do our work at `now`, in monotonic seconds; said often enough, for else the manager ends us.

        `status`: how we are; told when it has changed.
        """
        if status != self._status:
            self._status = status
            self._tell(f"STATUS={status}", patience=0)
        if self.watchdog is not None and now >= self._alive_at:
            self._alive_at = now + self.watchdog
            self._tell("WATCHDOG=1", patience=0)

    def gave_way(self, pid: int, status: str) -> None:
        """From now on process `pid` is the service, and ready, which only this one may still say for it."""
        self._tell(f"MAINPID={pid}", "READY=1", f"STATUS={status}")

    def environment(self) -> dict[str, str]:
        """What a program that takes our place needs to know the manager."""
        if not self._address:
            return {}
        address = "@" + self._address[1:] if self._address.startswith("\0") else self._address
        found = {"NOTIFY_SOCKET": address}
        if self.watchdog is not None:
            found["WATCHDOG_USEC"] = str(round(self.watchdog * 2e6))
        return found

    def _tell(self, *lines: str, patience: float = PATIENCE) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(patience)
                # Connected, because only then the kernel says when there is room for it.
                sock.connect(self._address)
                sock.send("\n".join(lines).encode())
        except OSError:
            pass  # nobody listens, or not within that time
