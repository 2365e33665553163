"""The configuration read again: by a child of the supervisor, which does not wait for it.

How it is read, and what comes of it, is `config.apart`'s; when, and what follows, `server.supervisor`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from botproxy.config import apart
from botproxy.errors import NotRead
from botproxy.server import privileges
from botproxy.server.children import Child, Children, Closable

if TYPE_CHECKING:
    from botproxy.config.schema import Config

GRACE = 5.0
"""Seconds beyond its own patience until it is killed."""


class Reading:
    """One that is under way."""

    def __init__(
        self,
        read: Callable[[], Config],
        children: Children,
        ours: Sequence[Closable],
        foreign: list[Closable],
    ) -> None:
        """Have a child do `read`. `ours`: what it must not hold; `foreign`: what no child may, from now on
        with what this one writes on. Raises NotRead.
        """
        self._file = apart.paper()
        self._foreign = foreign
        self.child = Child("reader")

        def body(_: object) -> int:
            privileges.name_process("botproxy-reader")
            privileges.close_ranks()
            return apart.write(read, self._file)

        try:
            children.fork(self.child, ours, body)
        except OSError as error:
            self._file.close()
            raise NotRead(f"no process can be started to read it ({error.strerror})") from error
        self.child.kill_at = time.monotonic() + apart.PATIENCE + GRACE
        foreign.append(self._file)

    def result(self, code: int) -> Config:
        """What the child found, which ended with `code`. Raises ConfigError, NotRead."""
        self._foreign.remove(self._file)
        with self._file:
            return apart.found(self._file, code)
