"""A whole botproxy, as it is installed: what a handshake and a request cost all of its processes.

One worker, everything on that is on by default, the access log included. A handshake is a new TLS 1.3
connection with one request on it; a request is one more on a connection that is kept. Three runs: a common
one, one with more handshakes, one with more requests.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.instructions import Server, whole_run
from bench.lineage import NAME
from bench.reload import clients
from bench.reload.site import site
from bench.site import Site

HANDSHAKES, MORE_HANDSHAKES = 40, 160
REQUESTS, MORE_REQUESTS = 100, 950
"""All on one connection, so below `limits.requests_per_connection`; many, because what a run costs beside
them differs by two million instructions from time to time."""
TIMEOUT = 60.0
REQUEST = f"GET /telegram HTTP/1.1\r\nHost: {NAME}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n".encode(
    "ascii"
)
CONFIG = """\
certificates:
  - {{ chain: {fullchain}, key: {privkey} }}
upstreams:
  bot: {{ url: "unix:{bot}" }}
listen: ["127.0.0.1:{port}"]
plain_listen: []
workers: 1
user: nobody
state_dir: {state}
log: {{ level: error }}
"""


def counted(environment: Mapping[str, str]) -> dict[str, float]:
    """Instructions of one handshake and of one request, with botproxy from where `environment` leads."""
    with site(1) as place:
        state = place.directory / "state"
        file = place.directory / "botproxy.yaml"
        file.write_text(_config(place, state))
        caller = _Caller(place)

        def total(handshakes: int, requests: int) -> int:
            server = Server(
                (sys.executable, "-P", "-m", "botproxy", "serve", "--config", str(file)),
                caller.is_answered,
                lambda _: caller.call(handshakes, requests),
                prepare=lambda: shutil.rmtree(state, ignore_errors=True),
                environment=environment,
            )
            return whole_run(server, 1).total

        common = total(HANDSHAKES, REQUESTS)
        handshake = (total(MORE_HANDSHAKES, REQUESTS) - common) / (MORE_HANDSHAKES - HANDSHAKES)
        request = (total(HANDSHAKES, MORE_REQUESTS) - common) / (MORE_REQUESTS - REQUESTS)
    return {"served: handshake + request": handshake, "served: request": request}


# Private


def _config(place: Site, state: Path) -> str:
    return CONFIG.format(
        fullchain=place.lineage.fullchain,
        privkey=place.lineage.privkey,
        bot=place.bot,
        port=place.port,
        state=state,
    )


class _Caller:
    """A client that makes sure of every answer."""

    def __init__(self, place: Site) -> None:
        self._port = place.port
        self._context = clients.client(place.lineage.ca, "1.3")

    def is_answered(self) -> bool:
        try:
            self.call(1, 0)
        except OSError:
            return False
        return True

    def call(self, handshakes: int, requests: int) -> None:
        """So many connections with one request each, and one more with so many."""
        for asked in (*[1] * handshakes, requests):
            sock = socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT)
            with self._context.wrap_socket(sock, server_hostname=NAME) as tls:
                for _ in range(asked):
                    _ask(tls)


def _ask(tls: ssl.SSLSocket) -> None:
    tls.sendall(REQUEST)
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(tls)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += _more(tls)
    if not head.startswith(b"HTTP/1.1 200 ") or b'"/telegram"' not in body or len(body) != length:
        raise ValueError(f"a wrong answer: {head!r} {body!r}")


def _more(tls: ssl.SSLSocket) -> bytes:
    data = tls.recv(65536)
    if not data:
        raise ConnectionError("the connection ended inside an answer")
    return data
