"""A client that never stops asking, at a constant rate: it measures what a fault costs everybody else.

Every second request makes a connection of its own, the others take turns on a few kept ones. A request
begins when its time has come, whether those before it are answered or not. Whatever is not a whole,
correct answer is a failure. A fault may be granted some; all others fail the test.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import threading
import time
from collections import deque
from dataclasses import dataclass
from math import inf
from typing import Self

from tests.wire import PATIENCE

RATE = 50.0
"""Requests in a second."""
KEPT = 4
"""Connections that are kept."""
_REQUEST = "GET {path} HTTP/1.1\r\nHost: localhost\r\n{end}\r\n"


@dataclass(slots=True)
class Probe:
    """One request."""

    connection: int = -1
    """Number of its connection; -1 until there is one."""
    began: float = inf
    """When it was on the wire, or its connection was; monotonic."""
    ended: float = inf
    error: str = ""


class _Connection:
    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer

    @property
    def is_usable(self) -> bool:
        """Whether the other side has not ended it, as every client looks before it sends."""
        ended = self.reader.at_eof() or self.reader.exception() is not None
        return not ended and not self.writer.is_closing()

    def close(self) -> None:
        self.writer.transport.abort()


class Checker:
    """Asks from `with` on until its end."""

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext,
        *,
        path: str = "/healthy",
        rate: float = RATE,
        kept: int = KEPT,
    ) -> None:
        self.probes: list[Probe] = []
        """All that began, in this order."""
        self._port = port
        self._context = context
        self._path = path
        self._rate = rate
        self._most = kept
        self._opened: dict[int, tuple[float, float]] = {}
        """From when to when there was each connection."""
        self._numbers = itertools.count()
        self._idle: deque[_Connection] = deque()
        self._kept = 0
        self._granted: list[tuple[float, float]] = []
        self._lost: list[float] = []
        self._any = 0
        self._over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)

    # What is granted

    def grant_between(self, first: float, last: float) -> None:
        """Requests that begin between these moments may fail."""
        self._granted.append((first, last))

    def grant(self, count: int) -> None:
        """As many requests may fail, whichever they are."""
        self._any += count

    def grant_connections_at(self, moment: float) -> None:
        """Each connection that was open at this moment may be lost, with one request on it."""
        self._lost.append(moment)

    @property
    def total(self) -> int:
        return len(self.probes)

    @property
    def failures(self) -> list[Probe]:
        return [probe for probe in self.probes if probe.error]

    @property
    def allowed(self) -> int:
        """The most failures that were granted."""
        begun = sum(any(a <= probe.began <= b for a, b in self._granted) for probe in self.probes)
        open_then = sum(a <= at < b for at in self._lost for a, b in self._opened.values())
        return begun + open_then + self._any

    def first_under_way(self) -> float:
        """When the oldest request began that is not over; now, if there is none."""
        return min([probe.began for probe in self.probes if probe.ended == inf] + [time.monotonic()])

    def judge(self) -> None:
        """Fail unless only what was granted has failed."""
        wrong = [probe for probe in self.failures if not self._is_granted(probe)]
        began = self.probes[0].began if self.probes else 0.0
        told = [f"{probe.began - began:.3f}-{probe.ended - began:.3f} s: {probe.error}" for probe in wrong]
        assert len(wrong) <= self._any, f"{len(wrong)} of {self.total} requests failed: {told[:20]}"
        assert len(self.failures) <= self.allowed

    def _is_granted(self, probe: Probe) -> bool:
        if any(first <= probe.began <= last for first, last in self._granted):
            return True
        first, last = self._opened.get(probe.connection, (inf, inf))
        return any(first <= moment <= last for moment in self._lost)

    # Waiting

    def wait_for(self, count: int) -> None:
        """Until that many more have begun from now on and are over."""
        with self._changed:
            first = len(self.probes)

            def over() -> bool:
                since = self.probes[first : first + count]
                return len(since) == count and all(probe.ended < inf for probe in since)

            assert self._changed.wait_for(over, 2 * PATIENCE), "the requests do not get through"

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait_for(2 * KEPT)  # so that the kept connections are there
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join(3 * PATIENCE)
        assert not self._thread.is_alive()

    # The thread

    def _run(self) -> None:
        asyncio.run(self._ask_at_rate())

    async def _ask_at_rate(self) -> None:
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()
        started = time.monotonic()
        for number in itertools.count():
            if self._over:
                break
            with self._changed:
                self.probes.append(probe := Probe())
            task = loop.create_task(self._ask(probe, keep=number % 2 == 1 and self._most > 0))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(max(0.0, started + (number + 1) / self._rate - time.monotonic()))
        if tasks:
            await asyncio.wait(tasks)
        for connection in self._idle:
            connection.close()
        await asyncio.sleep(0)  # what was closed is taken apart

    async def _ask(self, probe: Probe, *, keep: bool) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                if keep:
                    await self._ask_on_kept(probe)
                else:
                    await self._ask_anew(probe)
        except (OSError, EOFError, ValueError) as error:
            probe.error = repr(error) or type(error).__name__
            probe.began = min(probe.began, time.monotonic())
        with self._changed:
            probe.ended = time.monotonic()
            self._changed.notify_all()

    async def _ask_anew(self, probe: Probe) -> None:
        connection = await self._connect(probe)
        try:
            await self._converse(connection, "Connection: close\r\n")
            if await connection.reader.read():
                raise ValueError("more than the answer")
        finally:
            self._close(connection)

    async def _ask_on_kept(self, probe: Probe) -> None:
        connection = None
        while self._kept >= self._most and self._idle and connection is None:
            connection = self._idle.popleft()
            if not connection.is_usable:
                self._drop(connection)
                connection = None
        if connection is None:
            self._kept += 1
            try:
                connection = await self._connect(probe)
            except BaseException:
                self._kept -= 1
                raise
            sent = None
        else:
            probe.connection = connection.number
            sent = probe
        try:
            goes_on = await self._converse(connection, "", sent)
        except BaseException:
            self._drop(connection)
            raise
        if goes_on and self._kept <= self._most:
            self._idle.append(connection)
        else:
            self._drop(connection)

    async def _connect(self, probe: Probe) -> _Connection:
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        sock = socket.socket()
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", self._port))
            probe.began = time.monotonic()
            probe.connection = number
            self._opened[number] = probe.began, inf
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=self._context, server_hostname="localhost"
            )
        except BaseException:
            sock.close()
            if number in self._opened:
                self._opened[number] = self._opened[number][0], time.monotonic()
            raise
        return _Connection(number, reader, writer)

    async def _converse(self, connection: _Connection, end: str, probe: Probe | None = None) -> bool:
        """One request and its answer; whether another may follow."""
        connection.writer.write(_REQUEST.format(path=self._path, end=end).encode())
        if probe is not None:
            probe.began = time.monotonic()
        head = await connection.reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ValueError(head.partition(b"\r\n")[0].decode())
        if await connection.reader.readexactly(2) != b"ok":
            raise ValueError("another answer")
        return b"connection: close" not in head.lower()

    def _close(self, connection: _Connection) -> None:
        self._opened[connection.number] = self._opened[connection.number][0], time.monotonic()
        connection.close()

    def _drop(self, connection: _Connection) -> None:
        self._kept -= 1
        self._close(connection)
