"""The attacks, as data: what is sent, how often, and what the proxy is told to allow.

`Held` connections stay as long as they may and send as little as they can; a `Burst` sends
all it has and leaves when the proxy ends the connection. Who pays is the sender: the
client, or in some cases the bot that a client merely calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from tests.attacks.wires import Depth
from tests.wire import get, post

_CHUNKED = "Transfer-Encoding: chunked"
_CLOSE = "Connection: close"
_SOCKET = get(
    "/socket",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
_PING = b"\x89\x80\0\0\0\0"
_GIANT = b"\x82\xff" + (1 << 40).to_bytes(8, "big") + bytes(4) + bytes(8 << 20)
"""The beginning of a terabyte."""


@dataclass(frozen=True, slots=True)
class Held:
    """Many connections at once."""

    depth: Depth = "tls"
    begin: bytes = b""
    """Sent at once."""
    drip: bytes = b""
    """Sent after it, `piece` bytes after each `interval`, from the beginning again at the end."""
    piece: int = 1
    interval: float = 0.25
    """Seconds."""
    reads: int = 0
    """Bytes read after each interval."""
    half_closed: bool = False
    """Says at once, in good order, that nothing more comes."""


@dataclass(frozen=True, slots=True)
class Burst:
    """One connection after the other."""

    data: bytes
    leave: bool = False
    """Ends the connection itself when everything is sent."""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    attack: Held | Burst
    sender: Literal["client", "bot"] = "client"
    connections: int = 0
    """Held at once; for bursts: how many one after the other in a test. 0: the usual number."""
    per_second: float = 10.0
    """Bursts in the benchmark, so that the attacker's own work does not take the processors."""
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


SHORT: Mapping[str, str] = MappingProxyType(
    {
        "handshake": "1s",
        "head": "1s",
        "body": "1s",
        "body_grace": "1s",
        "write": "1s",
        "keep_alive": "1s",
        "tunnel": "1s",
    }
)
"""Timeouts for tests: what takes a minute by default shall happen within one."""

CASES = (
    Case("open only", Held("tcp")),
    Case("TLS hello only", Held("hello")),
    Case("handshake, then silence", Held()),
    Case("idle keep-alive", Held(begin=get())),
    Case(
        "twice the cap of an address",
        Held(begin=get()),
        settings=MappingProxyType({"limits": {"connections_per_address": 100}}),
    ),
    Case("slow head (Slowloris)", Held(begin=get()[:-2], drip=b"X-a: b\r\n", piece=8)),
    Case("slow body", Held(begin=post("/", "Content-Length: 8192"), drip=b"x")),
    Case("slow read", Held(begin=get("/large"), reads=1)),
    Case("stalled client, large response", Held(begin=get("/large"))),
    Case("one byte at a time", Held(drip=get(), interval=0.1)),
    Case("chunk extension that drips", Held(begin=post("/", _CHUNKED, body=b"1"), drip=b";a=b", piece=4)),
    Case("WebSocket, idle", Held(begin=_SOCKET)),
    Case("WebSocket, half open", Held(begin=_SOCKET, half_closed=True)),
    Case("head of 1 MiB", Burst(get()[:-2] + b"X-Big: " + b"x" * (1 << 20))),
    Case("4000 fields", Burst(get()[:-2] + b"a:\r\n" * 4000 + b"\r\n")),
    Case("4000 folds", Burst(get()[:-2] + b"X-Fold: a\r\n" + b" b\r\n" * 4000 + b"\r\n")),
    Case("empty lines before a request", Burst(b"\r\n" * 50_000)),
    Case("chunks of one byte", Burst(post("/", _CHUNKED, body=b"1\r\nx\r\n" * 20_000))),
    Case(
        "long chunk extensions",
        Burst(post("/", _CHUNKED, body=(b"1;a=" + b"b" * 4000 + b"\r\nx\r\n") * 100)),
    ),
    Case("10 000 trailers", Burst(post("/", _CHUNKED, body=b"0\r\n" + b"a: b\r\n" * 10_000))),
    Case("10 000 pipelined requests", Burst(get() * 10_000), connections=3, per_second=0.5),
    Case("log flood: refused heads", Burst(b"GET /" + b"\x01" * 1000 + b" HTTP/1.1\r\n\r\n")),
    Case("log flood: long paths", Burst(get("/" + "a/" * 4000) * 1000), connections=3, per_second=0.2),
    Case("WebSocket, pings", Burst(_SOCKET + _PING * 200_000, leave=True), per_second=2),
    Case("WebSocket, giant frame", Burst(_SOCKET + _GIANT, leave=True), per_second=1),
    Case("bot: interim responses without end", Burst(get("/interim", _CLOSE)), "bot"),
    Case("bot: head without end", Burst(get("/head", _CLOSE)), "bot"),
    Case("bot: 40 000 fields", Burst(get("/fields", _CLOSE)), "bot"),
    Case(
        "bot: chunks of one byte",
        Burst(get("/chunks", _CLOSE)),
        "bot",
        connections=3,
        per_second=1,
    ),
)
BY_NAME = {case.name: case for case in CASES}
