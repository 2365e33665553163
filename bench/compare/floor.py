"""What OpenSSL alone needs for the server's half of a handshake: both halves in memory, no socket, no server.

The physical floor: no server that uses this OpenSSL can be below it. It is a process of
its own on the servers' core, works through Python's ssl, whose part is about a hundredth,
and takes the CPU time of the server's steps only. Nothing is read or written after the
handshake, so that a case with a request has the floor of its handshake.

Run by `Floor` as `python -m bench.compare.floor`.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from bench.compare import client
from bench.compare.cases import BY_NAME, Case
from bench.compare.load import CONFIGURATION
from bench.lineage import NAME

now = time.thread_time


class Floor:
    """The process, from outside; `tickets` for every handshake of TLS 1.3."""

    def __init__(self, core: int, fullchain: Path, privkey: Path, tickets: int) -> None:
        arguments = (str(fullchain), str(privkey), str(tickets))
        self._process = subprocess.Popen(
            ("taskset", "-c", str(core), sys.executable, "-m", "bench.compare.floor", *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENSSL_CONF": str(CONFIGURATION)},
        )

    def slice(self, case: Case) -> dict[str, Any]:
        """As of a peer; of a case with handshakes only."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{case.name} {case.seconds}\n")
        self._process.stdin.flush()
        seen: dict[str, Any] = json.loads(self._process.stdout.readline())
        return seen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # nothing more to say: it ends


# The process itself


def server_context(fullchain: Path, privkey: Path, tickets: int) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(fullchain, privkey)
    made.num_tickets = tickets
    return made


def handshake(
    server: ssl.SSLContext, asks: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[float, ssl.SSLObject]:
    """CPU seconds of the server's steps, and the client."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = asks.wrap_bio(to_client, to_server, server_hostname=NAME, session=session)
    began = now()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    spent = now() - began
    done = False
    while not done:
        _step(theirs)
        began = now()
        done = _step(ours)
        spent += now() - began
    _step(theirs)  # TLS 1.2: the server's is the last message
    try:
        theirs.read()  # tickets of TLS 1.3 come after the handshake
    except ssl.SSLWantReadError:
        pass
    return spent, theirs


def work(case: Case, server: ssl.SSLContext) -> dict[str, Any]:
    asks = client.context(case.version, case.group, case.suite)
    session = handshake(server, asks, None)[1].session if case.resumed else None
    count, spent, ends, began = 0, 0.0, now() + case.seconds, now()
    seen: dict[tuple[str, str, bool], int] = {}
    while now() < ends:
        took, theirs = handshake(server, asks, session)
        cipher = theirs.cipher()
        key = theirs.version() or "", cipher[0] if cipher else "", bool(theirs.session_reused)
        seen[key] = seen.get(key, 0) + 1
        spent, count = spent + took, count + 1
    return {
        "operations": count,
        "seconds": now() - began,
        "cpu": spent,
        "error_count": 0,
        "errors": [],
        "handshakes": [[*key, 0 if key[2] else 2, times] for key, times in seen.items()],
    }


# Private


def _step(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _main(fullchain: Path, privkey: Path, tickets: int) -> None:
    server = server_context(fullchain, privkey, tickets)
    while line := sys.stdin.readline():
        name, seconds = line.split()
        case = replace(BY_NAME[name], seconds=float(seconds))
        print(json.dumps(work(case, server)), flush=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
