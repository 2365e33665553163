"""Clients that take nothing on trust: each connection is new, verified, and its answer looked at.

Decides what a failure is and of which kind: the TCP connection, the handshake (which
includes the verification of chain and name), no answer, half an answer, or one that is
not the bot's to this very request. Several processes connect at once, some with TLS 1.2,
at a bounded rate; `Clients` starts them and collects what they met.

Run `python -m bench.reload.clients PORT CA 1.2|1.3 PAUSE`: one line of JSON for each
connection, until SIGTERM. After: `bench.reload.sightings`.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal, Self

from bench.lineage import NAME

DEADLINE = 10.0
"""Seconds for each wait of one connection."""
PROCESSES = 4
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

Failure = Literal["connect", "handshake", "no answer", "short answer", "wrong answer"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one connection. Times are monotonic, which all processes of a machine share."""

    began: float
    ended: float
    handshaken: float = 0.0
    """When the certificate was seen; 0 if none was."""
    serial: str = ""
    """Of the certificate."""
    worker: int = 0
    """The process that served it; 0 if nobody answered."""
    failure: Failure | None = None
    detail: str = ""


def client(ca: Path, version: str) -> ssl.SSLContext:
    """Trusts `ca` alone, and speaks TLS `version` alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    context.minimum_version = context.maximum_version = VERSIONS[version]
    return context


def attempt(port: int, context: ssl.SSLContext, path: str) -> Attempt:
    """One connection with a full handshake and one request for `path`."""
    began = time.monotonic()
    handshaken, serial = 0.0, ""
    failure: Failure = "connect"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as plain:
            failure = "handshake"
            with context.wrap_socket(plain, server_hostname=NAME) as tls:
                handshaken, serial = time.monotonic(), serial_shown(tls)
                failure = "no answer"
                tls.sendall(request(path, port))
                response = http.client.HTTPResponse(tls, method="GET")
                response.begin()
                failure = "short answer"
                body = response.read()
        failure = "wrong answer"
        if response.status != 200:
            return Attempt(
                began, time.monotonic(), handshaken, serial, 0, failure, f"status {response.status}"
            )
        answer = json.loads(body)
        if answer["path"] != path:
            raise ValueError(f"the answer to {answer['path']}")
        return Attempt(began, time.monotonic(), handshaken, serial, int(answer["worker"]))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        detail = f"{type(error).__name__}: {error}"
        return Attempt(began, time.monotonic(), handshaken, serial, 0, failure, detail)


def request(path: str, port: int) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {NAME}:{port}\r\nConnection: close\r\n\r\n".encode("ascii")


def serial_shown(tls: ssl.SSLSocket) -> str:
    """The serial of the server's certificate: hexadecimal, no zeros before it."""
    shown = tls.getpeercert() or {}
    return f"{int(str(shown['serialNumber']), 16):x}"


class Clients:
    """Processes that connect all the time."""

    def __init__(self, port: int, ca: Path, pause: float) -> None:
        """`pause`: seconds from the start of one connection to that of the next of the same process, at
        least. It bounds the load: the same processors carry the clients, the bot and the peer."""
        self.attempts: list[Attempt] = []
        """In the order in which they were heard of, which is about that of their ends."""
        self._changed = threading.Condition()
        self._processes = []
        self._readers = []
        for number in range(PROCESSES):
            version = tuple(VERSIONS)[number % len(VERSIONS)]
            arguments = [str(port), str(ca), version, str(pause)]
            command = [sys.executable, "-m", "bench.reload.clients", *arguments]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
            reader.start()
            self._processes.append(process)
            self._readers.append(reader)

    def wait(self, done: Callable[[Sequence[Attempt]], bool], seconds: float, since: int = 0) -> bool:
        """Until `done` holds of the attempts from index `since` on; False after `seconds`."""
        deadline = time.monotonic() + seconds
        while not done(self.attempts[since:]):
            with self._changed:
                if (left := deadline - time.monotonic()) <= 0:
                    return False
                self._changed.wait(left)
            time.sleep(min(0.02, left))  # several at a time: looking costs more than hearing
        return True

    def stop(self) -> None:
        """Let each finish what it has begun. A client that ended before makes the measurement void."""
        early = [process.pid for process in self._processes if process.poll() is not None]
        for process in self._processes:
            process.terminate()
        for process, reader in zip(self._processes, self._readers, strict=True):
            process.wait()
            reader.join()
        assert not early, "clients ended before they were told to"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._changed:
                self.attempts.append(Attempt(**json.loads(line)))
                self._changed.notify_all()
        stream.close()


# Private


def _paths() -> Iterator[str]:
    """A path for each request that no other client uses."""
    number = 0
    while True:
        number += 1
        yield f"/{os.getpid()}/{number}"


def _main(port: int, ca: Path, version: str, pause: float) -> None:
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us, who then stops us
    context = client(ca, version)
    for path in _paths():
        made = attempt(port, context, path)
        print(json.dumps(asdict(made)), flush=True)
        if stopped.wait(max(0.0, made.began + pause - time.monotonic())):
            return


if __name__ == "__main__":
    _main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
