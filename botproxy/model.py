"""The values that travel: heads, addresses, what TLS agreed on, the record of a request.

Wire bytes stay `bytes`. Nothing here does I/O or decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from botproxy.fields import Fields


@dataclass(slots=True)
class RequestHead:
    """A request head that passed every check of `http.head`."""

    method: bytes
    target: bytes
    """Origin-form as received (path and query, byte for byte), or `*`."""
    minor: int
    """HTTP/1.x."""
    fields: Fields
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
    fields: Fields
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


@dataclass(slots=True)
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
    shown: str = field(default="", init=False, compare=False)
    """How the log shows it, once it has."""


class Record:
    """What happened to one request; filled along the way, logged once."""

    def __init__(
        self,
        id: str,
        peer: Peer,
        client: str,
        started: float,
        tls: TlsInfo | None = None,
        first_on_connection: bool = False,
    ) -> None:
        """`client`: address of the real one, behind trusted proxies. `started`: monotonic seconds, at the
        first byte of the head."""
        self.id = id
        self.peer = peer
        self.client = client
        self.started = started
        self.tls = tls
        self.first_on_connection = first_on_connection
        self.method = b""
        self.target = b""
        self.status = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.route = ""
        self.upstream = ""
        self.reused = False
        self.hold = 0.0
        """Seconds waited for the bot to accept."""
        self.upstream_seconds = 0.0
        """From the request's first byte to the bot to the head of its response."""
        self.total = 0.0
        self.error: str | None = None
        self.detail: str | None = None
        self.tunnel = False
