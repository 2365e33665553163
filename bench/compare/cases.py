"""What is measured: every case as data, in the order of the tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.lineage import Keys

Operation = Literal["handshake", "visit", "get", "post", "upload", "download", "echo"]
"""`handshake`: a new connection and no more; `visit`: a new connection and one request; the rest on
connections that are there."""
FRESH: tuple[Operation, ...] = ("handshake", "visit")
MEGABYTES = ("upload", "download")


@dataclass(frozen=True, slots=True)
class Case:
    """One column of figures."""

    name: str
    title: str
    operation: Operation
    keys: Keys = "ecdsa"
    version: Literal["1.2", "1.3"] = "1.3"
    resumed: bool = False
    seconds: float = 0.3
    """Of one slice, of which every peer has one in every round. What has begun by then is finished."""
    connections: int = 16
    """At once."""
    suite: str = "TLS_AES_256_GCM_SHA384"
    group: str = "X25519"
    """The client offers no other."""


def _old(keys: Keys) -> str:
    return "ECDHE-ECDSA-AES256-GCM-SHA384" if keys == "ecdsa" else "ECDHE-RSA-AES256-GCM-SHA384"


CASES = (
    Case("tls13-ecdsa", "full handshake, TLS 1.3, ECDSA P-256", "handshake"),
    Case("tls13-rsa", "full handshake, TLS 1.3, RSA 2048", "handshake", keys="rsa"),
    # In TLS 1.2 a server's ECDSA key must be on a curve that the client offers as a group.
    Case(
        "tls12-ecdsa",
        "full handshake, TLS 1.2, ECDSA P-256",
        "handshake",
        version="1.2",
        suite=_old("ecdsa"),
        group="prime256v1",
    ),
    Case(
        "tls12-rsa",
        "full handshake, TLS 1.2, RSA 2048",
        "handshake",
        keys="rsa",
        version="1.2",
        suite=_old("rsa"),
    ),
    Case("visit", "full handshake (TLS 1.3, ECDSA) + one request", "visit"),
    Case("visit-rsa", "full handshake (TLS 1.3, RSA) + one request", "visit", keys="rsa"),
    Case("resumed", "resumed handshake (TLS 1.3) + one request", "visit", resumed=True),
    Case("keep-alive", "small request, kept connection", "get"),
    Case("webhook", "webhook, POST of 2 KB, kept connection", "post"),
    Case("upload", "upload of 64 MiB", "upload", connections=1),
    Case("download", "download of 64 MiB", "download", connections=1),
    Case("websocket", "WebSocket, one message there and back", "echo"),
)
BY_NAME = {case.name: case for case in CASES}
