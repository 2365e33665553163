"""Does a client that was here before still resume its session after a renewal?

Tickets are collected before it, each from a connection of its own, and each is tried once
afterwards, for the renewal is the peer's own way, and waited for. The same without a
renewal is the control: who resumes nothing then cannot lose anything.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bench.lineage import NAME
from bench.peers.peer import Peer
from bench.reload import clients, unasked

TRIES = 20


@dataclass(slots=True)
class Tickets:
    """Sessions that clients of one TLS version keep."""

    context: ssl.SSLContext
    sessions: list[ssl.SSLSession | None]


def measure(peer: Peer) -> dict[str, Any]:
    """How many tickets of `peer`, which runs, resumed; by TLS version."""
    control = {version: _try(peer, _collect(peer, version)) for version in clients.VERSIONS}
    kept = {version: _collect(peer, version) for version in clients.VERSIONS}
    serial = peer.site.lineage.renew()
    renewed = time.monotonic()
    told = peer.tell()
    change = unasked.until_served(peer, serial, renewed)
    if change.complete is None:
        return {"error": f"the new certificate was not served; the command said: {told.says}"}
    after = {version: _try(peer, tickets) for version, tickets in kept.items()}
    return {"tries": TRIES, "without_a_renewal": control, "after_a_renewal": after}


# Private


def _collect(peer: Peer, version: str) -> Tickets:
    context = clients.client(peer.site.lineage.ca, version)
    return Tickets(context, [_connect(peer, context, None)[1] for _ in range(TRIES)])


def _try(peer: Peer, tickets: Tickets) -> dict[str, int]:
    """How many of them resumed, began anew, or failed."""
    found: Counter[str] = Counter()
    for session in tickets.sessions:
        try:
            resumed, _ = _connect(peer, tickets.context, session)
        except OSError as error:
            found[f"failed: {type(error).__name__}"] += 1
        else:
            found["resumed" if resumed else "new"] += 1
    return dict(found)


def _connect(
    peer: Peer, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[bool, ssl.SSLSession | None]:
    """Whether `session` resumed, and the one to keep, which TLS 1.3 sends after the handshake."""
    with (
        socket.create_connection(("127.0.0.1", peer.site.port), timeout=clients.DEADLINE) as plain,
        context.wrap_socket(plain, server_hostname=NAME, session=session) as tls,
    ):
        tls.sendall(clients.request("/ticket", peer.site.port))
        while tls.recv(65536):
            pass
        return bool(tls.session_reused), tls.session
