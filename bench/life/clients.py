"""Clients that ask at a constant rate together, and keep account of every request."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Self

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n%b\r\n"
TIMEOUT = 20.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that got no whole answer."""

    connected: float
    """When its connection was begun, monotonic seconds; as is the next."""
    failed: float
    why: str


class Clients:
    """`count` threads, each with its share of `rate` requests/s; every second one keeps its connection."""

    def __init__(self, port: int, trust: ssl.SSLContext, count: int, rate: float) -> None:
        self.failures: list[Failure] = []
        self.times: list[float] = []
        """Seconds of each request that was answered, from when it was due."""
        self._port = port
        self._trust = trust
        self._each = count / rate
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._come, args=(number,)) for number in range(count)]

    @property
    def done(self) -> int:
        return len(self.times) + len(self.failures)

    def _come(self, number: int) -> None:
        keeps = number % 2 == 0
        due = time.monotonic() + self._each * number / len(self._threads)
        connection: ssl.SSLSocket | None = None
        connected = 0.0
        while not self._over.wait(max(0.0, due - time.monotonic())):
            try:
                if connection is None:
                    connected = time.monotonic()
                    connection = self._connect()
                stays = _ask(connection, keeps)
                self.times.append(time.monotonic() - due)
            except (OSError, ValueError) as error:
                self.failures.append(Failure(connected, time.monotonic(), repr(error)))
                stays = False
            if not stays and connection is not None:
                connection.close()
                connection = None
            due = max(due + self._each, time.monotonic() - 1.0)  # after a pause, no flood
        if connection is not None:
            connection.close()

    def _connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT)
        try:
            return self._trust.wrap_socket(plain, server_hostname="localhost")
        except OSError:
            plain.close()
            raise

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def _ask(connection: ssl.SSLSocket, keeps: bool) -> bool:
    """One request; whether the connection may be used again. Raises OSError, ValueError."""
    connection.sendall(REQUEST % (b"" if keeps else b"Connection: close\r\n"))
    data = b""
    while not data.endswith(b"\r\n\r\nok"):
        more = connection.recv(65536)
        if not more:
            raise ValueError(f"the end after {len(data)} bytes")
        data += more
    if not data.startswith(b"HTTP/1.1 200 "):
        raise ValueError(data[:40].decode("latin-1"))
    return b"connection: close" not in data.lower()
