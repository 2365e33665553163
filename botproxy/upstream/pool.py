"""Which kept connection carries the next request, and which are kept at all.

All changes are plain functions with no wait in between. A connection belongs to
the client it was opened for (`reuse: client`), to everybody (`shared`) or to one
request (`never`). Sharing saves connects, and makes one client's broken exchange
another's problem; the bot is near, so it is not the default.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from botproxy.http.h1 import Kept
from botproxy.upstream.connection import UpstreamConnection

SHARED_LIMIT = 64
"""Idle connections kept for everybody, for one upstream in one worker."""


class Pool:
    """The kept connections to one upstream."""

    def __init__(
        self,
        name: str,
        reuse: Literal["client", "shared", "never"],
        idle: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`idle`: seconds a connection is kept unused."""
        self._name = name
        self._reuse = reuse
        self._idle = idle
        self._loop = loop
        self._shared: list[UpstreamConnection] = []
        self.keeps = reuse != "never"
        """Whether connections are kept at all."""

    def take(self, kept: dict[str, Kept]) -> UpstreamConnection | None:
        """A connection that may carry a request now; `kept` are the client's own."""
        while (connection := self._pop(kept)) is not None:
            stream = connection.stream
            stream.on_lost = stream.on_expired = None
            if stream.is_quiet():  # the bot said nothing and did not leave
                connection.reused = True
                return connection
            stream.shut()
        return None

    def give_back(self, connection: UpstreamConnection, kept: dict[str, Kept]) -> None:
        """The exchange is over: keep the connection if it may serve again, otherwise close it."""
        if not self.keeps or not connection.is_reusable() or len(self._shared) >= SHARED_LIMIT:
            connection.shut()
            return
        if self._reuse == "shared":
            self._shared.append(connection)
        else:
            kept[self._name] = connection

        def drop() -> None:
            self._drop(connection, kept)

        stream = connection.stream
        idle = self._idle if self._idle < connection.idle_limit else connection.idle_limit
        stream.expire_at(self._loop.time() + idle, drop)
        stream.on_lost = drop

    def close(self) -> None:
        """Close what is kept for everybody."""
        while self._shared:
            self._shared.pop().shut()

    def _pop(self, kept: dict[str, Kept]) -> UpstreamConnection | None:
        if self._reuse == "shared":
            return self._shared.pop() if self._shared else None
        connection = kept.pop(self._name, None)
        return connection if isinstance(connection, UpstreamConnection) else None

    def _drop(self, connection: UpstreamConnection, kept: dict[str, Kept]) -> None:
        if connection in self._shared:
            self._shared.remove(connection)
        elif kept.get(self._name) is connection:
            del kept[self._name]
        connection.shut()
