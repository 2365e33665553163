"""The values that travel: heads, addresses, what TLS agreed on, the record of a request.

Wire bytes stay `bytes`. A field is (name in lower case, name as sent, value), so
that policies compare without converting and the bot sees the sender's spelling.
Nothing here does I/O or decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Field = tuple[bytes, bytes, bytes]
"""(lower-case name, name as sent, value without surrounding whitespace)."""


def make_field(name: bytes, value: bytes) -> Field:
    return (name.lower(), name, value)


@dataclass(slots=True)
class RequestHead:
    """A request head that passed every check of `http.head`."""

    method: bytes
    target: bytes
    """Origin-form as received (path and query, byte for byte), or `*`."""
    minor: int
    """HTTP/1.x."""
    fields: list[Field]
    authority: bytes
    """The Host field as received, or the authority of an absolute-form target; may be empty in 1.0."""
    host: str
    """Lower case, without port and trailing dot, for routing."""
    content_length: int | None
    """None when there is no Content-Length."""
    chunked: bool
    keep_alive: bool
    """Whether the client allows another request on this connection."""
    expects_continue: bool
    websocket_key: bytes | None
    """Sec-WebSocket-Key of a valid WebSocket handshake, otherwise None."""

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.content_length)


@dataclass(slots=True)
class ResponseHead:
    """A response head that passed every check of `http.head`."""

    status: int
    minor: int
    fields: list[Field]
    content_length: int | None
    chunked: bool
    keep_alive: bool
    """Whether the bot allows another request on its connection."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a client connection."""

    address: str
    """IP address as text; IPv4-mapped IPv6 is written as IPv4."""
    port: int
    local_port: int
    """The port the client connected to, for X-Forwarded-Port."""
    trusted: bool = False
    """Whether it is one of `trusted_proxies`."""


@dataclass(frozen=True, slots=True)
class TlsInfo:
    """What a handshake agreed on."""

    version: str
    cipher: str
    sni: str | None
    resumed: bool
    handshake: float
    """Seconds from the first byte of the hello to the end of the handshake."""
    hsts: bool
    """Whether the certificate served is one that HSTS may be promised for."""


@dataclass(slots=True)
class Record:
    """What happened to one request; filled along the way, logged once."""

    id: str
    peer: Peer
    client: str
    """Address of the real client, behind trusted proxies."""
    started: float
    """Monotonic seconds, at the first byte of the head."""
    tls: TlsInfo | None = None
    first_on_connection: bool = False
    method: bytes = b""
    target: bytes = b""
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    route: str = ""
    upstream: str = ""
    reused: bool = False
    hold: float = 0.0
    """Seconds waited for the bot to accept."""
    upstream_seconds: float = 0.0
    """From the request's first byte to the bot to the head of its response."""
    total: float = 0.0
    error: str | None = None
    detail: str | None = None
    tunnel: bool = False
    notes: list[str] = field(default_factory=list)
