"""The configuration as frozen data: every key, its default, and why.

One class per YAML section, fields in the order of the annotated file in
`configs/`. Values are checked here one by one and against each other; reading
files, environment and line numbers is `config.load`. Every part of the program
receives its own section, never the whole.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from botproxy.config.units import Duration, Rate, Size

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Section(BaseModel):
    """A frozen mapping that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# Addresses


_PORT = r"(?P<port>\d{1,5})"
_ADDRESS = re.compile(rf"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^\[\]:/\s]*)):{_PORT}")
_FD = re.compile(r"fd:(?P<fd>\d+)")


def _listen_address(value: object) -> str:
    if isinstance(value, str):
        if _FD.fullmatch(value) or value == "systemd":
            return value
        match = _ADDRESS.fullmatch(value)
        if match and int(match["port"]) <= 65535:
            return value
    raise ValueError('expected an address like ":443", "127.0.0.1:8443", "[::]:443", "fd:3" or "systemd"')


def split_address(value: str) -> tuple[str, int]:
    """Host (empty: every address) and port of a checked listen address."""
    match = _ADDRESS.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} has no host and port")
    return match["v6"] or match["host"] or "", int(match["port"])


def _network(value: object) -> Network:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    try:
        return ipaddress.ip_network(str(value), strict=True)
    except ValueError as error:
        raise ValueError(f'expected a network like "10.0.0.0/8" or an address ({error})') from None


Cidr = Annotated[Network, BeforeValidator(_network), PlainSerializer(str), WithJsonSchema({"type": "string"})]
Address = Annotated[str, BeforeValidator(_listen_address)]


class Listen(Section):
    """One listening address; the short form is the address alone."""

    address: Address
    """`host:port`, `:port` (all addresses, both families), `[::]:port`, `fd:N`, or `systemd`."""
    proxy_protocol_from: tuple[Cidr, ...] = ()
    """Peers that begin every connection with a PROXY protocol header (v1 or v2), which is then demanded."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"address": value} if isinstance(value, str) else value


# Certificates and TLS


class Certificate(Section):
    """One certificate; several may cover one name (RSA beside ECDSA)."""

    chain: str
    """PEM file: the certificate, then its intermediates (certbot's `fullchain.pem`)."""
    key: str
    """PEM file: the private key."""
    password_file: str | None = None
    """File with the passphrase of an encrypted key."""


class Tls(Section):
    """What is spoken on the TLS listeners."""

    min_version: Literal["1.2", "1.3"] = "1.2"
    """1.3 alone would cut off older webhook senders."""
    strict_sni: bool = False
    """Refuse unknown names (alert unrecognized_name) instead of serving the first certificate."""


# Upstreams and routes


class Target(Section):
    """A checked upstream address."""

    scheme: Literal["http", "https", "unix"]
    host: str
    """Host name or address; empty for a Unix socket."""
    port: int
    path: str = ""
    """Path of the Unix socket."""

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


_URL_EXPECTED = 'expected "http://host:port", "https://host:port" or "unix:/path/to.sock"'


def parse_target(url: str) -> Target:
    """The address in an upstream `url`; raises ValueError that says what was expected."""
    if url.startswith("unix:") and len(url) > len("unix:"):
        return Target(scheme="unix", host="", port=0, path=url.removeprefix("unix:"))
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(_URL_EXPECTED)
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"{_URL_EXPECTED}, without path, query or user (the request's own path is sent)")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{_URL_EXPECTED}, with a port from 1 to 65535") from None
    default = 443 if parts.scheme == "https" else 80
    scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
    return Target(scheme=scheme, host=parts.hostname, port=port or default)


class Upstream(Section):
    """One bot."""

    url: str
    """`http://host:port`, `https://host:port` (verified), `unix:/path`."""
    reuse: Literal["client", "shared", "never"] = "client"
    """Who may use a kept connection: the client it was opened for, everybody, nobody. `shared` saves
    connects and lets one client's broken exchange meet another's; the bot is near, so it is not default."""
    hold: Duration = 10.0
    """How long a request waits while the bot refuses connections (it restarts); nothing was sent yet."""
    ca: str | None = None
    """PEM file that an https:// bot's certificate must verify against; the system's store by default."""

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        parse_target(value)
        return value

    @property
    def target(self) -> Target:
        return parse_target(self.url)


class RateLimit(Section):
    """Token buckets; a request above the rate gets 429 and Retry-After."""

    per_address: Rate | None = None
    """For each client address (IPv6: each /64)."""
    total: Rate | None = None
    """For all clients together."""
    burst: Annotated[int, Field(ge=1)] = 20
    """How many requests may come at once before the rate counts."""


_HOST = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\]")


class Route(Section):
    """Which requests go to which bot; the first that fits wins."""

    hosts: tuple[str, ...] = ()
    """Host names served, `*.example.com` for one label of wildcard; none: every host."""
    path: str = "/"
    """Served are this path and everything below it, compared with the raw bytes of the request."""
    upstream: str | None = None
    """Name of the upstream; may be left out when there is only one."""
    rate: RateLimit = RateLimit()

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        lowered = tuple(host.lower().removesuffix(".") for host in value)
        for host in lowered:
            if not _HOST.fullmatch(host):
                raise ValueError(f'expected a host name like "bot.example.com" without port, found "{host}"')
        return lowered

    @field_validator("path")
    @classmethod
    def _path(cls, value: str) -> str:
        if not re.fullmatch(r"/[!-~]*", value) or re.search(r"[?#\\%]|//|/\.\.?(/|$)", value):
            raise ValueError(
                'expected a path like "/telegram": from the root, without %, ?, #, backslash, "//" or dot segments'
            )
        return value


# Headers


class Hsts(Section):
    """Strict-Transport-Security (RFC 6797); sent over TLS only."""

    enabled: bool = True
    """`hsts: off` sends `max-age=0`, which takes an earlier promise back."""
    max_age: Duration = 365 * 86400.0
    include_subdomains: bool = False
    """Dangerous where other hosts share the domain; off."""
    preload: bool = False

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if value in ("off", False):
            return {"enabled": False}
        return {} if value in ("on", True) else value


class Headers(Section):
    """What is added to responses."""

    hsts: Hsts = Hsts()
    preset: Literal["api", "web", "none"] = "api"
    """`api`: nosniff and no-referrer; `web` adds framing and permission rules for pages in browsers."""
    set: dict[str, str] = {}
    """Further response headers."""
    override: bool = False
    """Whether ours replace what the bot sets itself."""
    underscores: Literal["pass", "drop", "refuse"] = "pass"
    """Request header names with `_`. One that reads like a header we set or trust is always refused."""

    @field_validator("set")
    @classmethod
    def _set(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not re.fullmatch(r"[A-Za-z0-9-]+", name):
                raise ValueError(f'expected a header name of letters, digits and "-", found "{name}"')
            if not re.fullmatch(r"[\t -~]*", text):
                raise ValueError(f"expected printable ASCII as the value of {name}")
            if name.lower() in _OURS:
                raise ValueError(f"{name} belongs to the connection and cannot be set")
        return value


_OURS = {
    "connection",
    "content-length",
    "transfer-encoding",
    "keep-alive",
    "upgrade",
    "trailer",
    "te",
    "date",
}


# Limits and times


class Limits(Section):
    """All on by default."""

    head: Size = 16 * 1024
    """Request head (431)."""
    fields: Annotated[int, Field(ge=1)] = 100
    """Header fields of a request (431)."""
    request_line: Size = 8 * 1024
    """(414)"""
    body: Size = 32 * 1024**2
    """Request body, counted while it streams (413). GitHub sends up to 25 MB."""
    body_rate: Size = 500
    """Bytes per second that an upload must reach, counted from `timeouts.body_grace` on; 0: none."""
    requests_per_connection: Annotated[int, Field(ge=1)] = 1000
    connection_age: Duration = 3600.0
    connections: Annotated[int, Field(ge=1)] = 4096
    """Client connections in all workers together; lowered where the limit on open files demands it."""
    connections_per_address: Annotated[int, Field(ge=1)] = 256
    """For each client address (IPv6: each /64); not for `trusted_proxies`."""
    handshakes: Annotated[int, Field(ge=1)] = 256
    """TLS handshakes in flight in one worker; more wait in the listen queue."""
    waiting: Annotated[int, Field(ge=1)] = 1000
    """Requests of one worker that wait for an absent bot (503 above it)."""
    rate: RateLimit = RateLimit()
    """Over all routes; off unless set."""


class Timeouts(Section):
    """Seconds; 0 switches off those that say so."""

    handshake: Duration = 10.0
    proxy_protocol: Duration = 5.0
    head: Duration = 10.0
    """From the first byte of a request head to its last (408)."""
    body: Duration = 30.0
    """Between two reads of a request body (408)."""
    body_grace: Duration = 20.0
    """After this long an upload must reach `limits.body_rate`."""
    write: Duration = 30.0
    """A client or bot that takes no byte for this long is cut off."""
    keep_alive: Duration = 75.0
    """Between requests; above the 60 s of Telegram's sender, so that it closes first."""
    connect: Duration = 3.0
    """One attempt to reach the bot (504)."""
    response: Duration = 60.0
    """From the request to the head of the bot's response (504); 0: none."""
    idle: Duration = 60.0
    """Between two reads of the bot's response body; 0: none."""
    upstream_keep_alive: Duration = 4.0
    """Idle connections to the bot; below the 5 s of uvicorn and hypercorn (2 s for gunicorn, always)."""
    tunnel: Duration = 3600.0
    """Silence in a WebSocket; 0: none."""
    drain: Duration = 25.0
    """What SIGTERM grants to requests in flight; Kubernetes kills after 30 s."""


class Log(Section):
    """Access log on stdout, operator log on stderr."""

    access: Literal["json", "off"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("access", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return "off" if value is False else value


def _names_one_upstream(name: str | None, upstreams: dict[str, Upstream]) -> bool:
    return name in upstreams if name is not None else len(upstreams) == 1


class Config(Section):
    """The whole configuration of one botproxy."""

    listen: tuple[Listen, ...] = (Listen(address=":443"),)
    """TLS listeners."""
    plain_listen: tuple[Listen, ...] = (Listen(address=":80"),)
    """Clear-text listeners: redirect to https and ACME http-01 files; `[]` turns them off."""
    acme_webroot: str | None = None
    """Directory of `certbot --webroot`; its `.well-known/acme-challenge/` is served on `plain_listen`."""
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = "auto"
    """Processes that serve; `auto`: one per CPU."""
    user: str | None = None
    """Account of the workers when started as root; by default `botproxy` where it exists, else `nobody`."""
    state_dir: str | None = None
    """Where the admin socket and the development CA live; `/var/lib/botproxy` for root, else
    `$XDG_STATE_HOME/botproxy`."""
    certificates: Annotated[tuple[Certificate, ...], Field(min_length=1)]
    """The first is the default for clients that name no host or an unknown one."""
    tls: Tls = Tls()
    upstreams: Annotated[dict[str, Upstream], Field(min_length=1)] = {
        "bot": Upstream(url="http://127.0.0.1:8000")
    }
    routes: tuple[Route, ...] = (Route(),)
    headers: Headers = Headers()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    trusted_proxies: tuple[Cidr, ...] = ()
    """Peers whose X-Forwarded-For and X-Request-ID are believed."""
    log: Log = Log()
    admin: str | None = None
    """Socket of `botproxy health`, `unix:/path`; in `state_dir` by default, `off` for none."""

    @field_validator("admin", mode="before")
    @classmethod
    def _admin(cls, value: object) -> object:
        if value is False:
            return "off"
        if value not in (None, "off") and not str(value).startswith("unix:/"):
            raise ValueError('expected "unix:/path/to.sock" or "off"')
        return value

    @field_validator("listen")
    @classmethod
    def _listens(cls, value: tuple[Listen, ...]) -> tuple[Listen, ...]:
        if not value:
            raise ValueError('expected at least one address like ":443"')
        return value

    @model_validator(mode="after")
    def _routes_reach_upstreams(self) -> Config:
        for index, route in enumerate(self.routes):
            if not _names_one_upstream(route.upstream, self.upstreams):
                known = ", ".join(sorted(self.upstreams))
                found = f'"{route.upstream}"' if route.upstream else "no upstream named"
                raise ValueError(f"routes[{index}].upstream: expected one of: {known}; found {found}")
        return self

    def upstream_of(self, route: Route) -> str:
        """Name of the upstream that serves `route`."""
        return route.upstream or next(iter(self.upstreams))
