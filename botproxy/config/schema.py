"""The configuration as frozen data: every key, its default, and why.

One class per YAML section, fields in the order of the annotated file in
`configs/`. Values are checked here one by one and against each other; reading
files, environment and line numbers is `config.load`. Every part of the program
receives its own section, never the whole; those that serve have it as plain data
with the same keys (`config.apart`), and import this for its types alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from botproxy.config.conflicts import contradictions
from botproxy.config.kinds import (
    Account,
    Address,
    AdminSocket,
    BodySize,
    CertificateName,
    Cidr,
    Duration,
    DurationOrUnlimited,
    DurationOrZero,
    FileName,
    HeaderName,
    HeaderValue,
    HeadSize,
    Host,
    Rate,
    RoutePath,
    Size,
    TrustedCidr,
    UpstreamName,
    Url,
    WorkerMemory,
    Workers,
)
from botproxy.config.units import Fault, Refused
from botproxy.config.values import ADDRESS_EXPECTED, ADDRESS_PATTERN, address_hint, listen_address

Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1, le=10_000_000)]


class Section(BaseModel):
    """A frozen mapping that refuses keys it does not know."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # it may hold a secret
    )


def _also(*short_forms: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Tells editors of the short forms that a section accepts instead of a mapping."""

    def extend(schema: dict[str, Any]) -> None:
        mapping = dict(schema)
        schema.clear()
        schema["anyOf"] = [*short_forms, mapping]

    return extend


# Addresses


class Listen(Section):
    """One listening address; the short form is the address alone."""

    model_config = ConfigDict(json_schema_extra=_also({"type": "string", "pattern": ADDRESS_PATTERN}))

    address: Address
    """`host:port`, `:port` (all addresses, both families), `[::]:port`, `fd:N`, or `systemd`."""
    proxy_protocol_from: tuple[Cidr, ...] = ()
    """Peers that begin every connection with a PROXY protocol header (v1 or v2), which is then demanded."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"address": value}
        if not isinstance(value, dict | Listen):
            raise Refused(Fault(ADDRESS_EXPECTED, hint=address_hint(value)))
        return value


# Certificates and TLS


class Certificate(Section):
    """One certificate; several may cover one name (RSA beside ECDSA)."""

    chain: FileName
    """PEM file: the certificate, then its intermediates (certbot's `fullchain.pem`)."""
    key: FileName
    """PEM file: the private key."""
    password_file: FileName | None = None
    """File with the passphrase of an encrypted key."""
    name: CertificateName | None = None
    """What `botproxy cert` calls it, and its directory in `state_dir`; made of the file's path by default."""
    allow_regression: Flag = False
    """Serve whatever the files hold and can be served, also when it is worse than what was served before."""


class Watch(Section):
    """How changed certificate files are noticed."""

    events: Flag = True
    """Be told by the kernel (inotify); where that is not possible the files are only polled."""
    poll: Duration = 10.0
    """The files are read again after this long, told or not: network file systems tell nothing."""


class Tls(Section):
    """What is spoken on the TLS listeners."""

    min_version: Literal["1.2", "1.3"] = "1.2"
    """1.3 alone would cut off older webhook senders."""
    strict_sni: Flag = False
    """Refuse unknown names (alert unrecognized_name), and clients without SNI as well, instead of serving
    the first certificate."""
    ticket_rotation: DurationOrZero = 12 * 3600.0
    """After this long, give or take a tenth, workers with new session ticket keys take over. 0: never."""


# Upstreams and routes


class Upstream(Section):
    """One bot."""

    url: Url
    """`http://host:port`, `https://host:port` (verified), `unix:/path`."""
    reuse: Literal["client", "shared", "never"] = "client"
    """Who may use a kept connection: the client it was opened for, everybody, nobody. `shared` saves
    connects and lets one client's broken exchange meet another's; the bot is near, so it is not default."""
    hold: DurationOrZero = 10.0
    """How long a request waits while the bot refuses connections (it restarts); nothing was sent yet.
    0: not at all."""
    ca: FileName | None = None
    """PEM file that an https:// bot's certificate must verify against; the system's store by default."""

    @field_validator("ca")
    @classmethod
    def _ca_needs_tls(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not info.data.get("url", "https:").startswith("https:"):
            raise Refused(Fault("a `url` that begins with https://, for nothing else is verified"))
        return value


class RateLimit(Section):
    """Token buckets; a request above the rate gets 429 and Retry-After."""

    per_address: Rate | None = None
    """For each client address (IPv6: each /64)."""
    total: Rate | None = None
    """For all clients together."""
    burst: Count = 20
    """How many requests may come at once before the rate counts."""


class Route(Section):
    """Which requests go to which bot; the first that fits wins."""

    hosts: tuple[Host, ...] = ()
    """Host names served, `*.example.com` for one label of wildcard; none: every host."""
    path: RoutePath = "/"
    """Served are this path and everything below it, compared with the raw bytes of the request."""
    upstream: UpstreamName | None = None
    """Name of the upstream; may be left out when there is only one."""
    rate: RateLimit = RateLimit()
    """Of requests to this route; off unless set."""


# Headers


class Hsts(Section):
    """Strict-Transport-Security (RFC 6797); sent over TLS only."""

    model_config = ConfigDict(json_schema_extra=_also({"enum": ["on", "off", True, False]}))

    enabled: Flag = True
    """`hsts: off` sends `max-age=0`, which takes an earlier promise back."""
    max_age: DurationOrZero = 365 * 86400.0
    """How long browsers remember to come by https only. 0: not at all."""
    include_subdomains: Flag = False
    """Dangerous where other hosts share the domain; off."""
    preload: Flag = False
    """Asks browsers to build the promise in; nearly impossible to take back."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if value == "off" or value is False:
            return {"enabled": False}
        if value == "on" or value is True:
            return {}
        if not isinstance(value, dict | Hsts):
            raise Refused(Fault('"on", "off" or a mapping like {max_age: 365d}'))
        return value


class Headers(Section):
    """What is added to responses."""

    hsts: Hsts = Hsts()
    """`on`, `off`, or its keys."""
    preset: Literal["api", "web", "none"] = "api"
    """`api`: nosniff and no-referrer; `web` adds framing and permission rules for pages in browsers."""
    set: dict[HeaderName, HeaderValue] = {}
    """Further response headers."""
    override: Flag = False
    """Whether ours replace what the bot sets itself."""
    underscores: Literal["pass", "drop", "refuse"] = "pass"
    """Request header names with `_`. One that reads like a header we set or trust is always refused."""


# Limits and times


class Limits(Section):
    """All on by default."""

    head: HeadSize = 16 * 1024
    """Request head (431)."""
    fields: Count = 100
    """Header fields of a request (431)."""
    request_line: HeadSize = 8 * 1024
    """Method, target and version (414)."""
    body: BodySize = 32 * 1024**2
    """Request body, counted while it streams (413). GitHub sends up to 25 MB."""
    body_rate: Size = 500
    """Bytes per second that an upload must reach, counted from `timeouts.body_grace` on; 0: none."""
    requests_per_connection: Count = 1000
    """After these the connection is closed in good order, which frees what it holds."""
    connection_age: Duration = 3600.0
    """As above, by time; give or take a tenth, so that not all come back at once."""
    connections: Count = 4096
    """Client connections in all workers together; lowered where the limit on open files demands it."""
    connections_per_address: Count = 256
    """For each client address (IPv6: each /64); not for `trusted_proxies`."""
    handshakes: Count = 256
    """TLS handshakes in flight in one worker; above it the oldest that takes more than a second is cut,
    otherwise new connections wait in the listen queue."""
    waiting: Count = 1000
    """Requests of one worker that wait for an absent bot (503 above it)."""
    memory: WorkerMemory | None = None
    """Memory of one worker (resident). Above it idle connections are closed and a new worker takes over;
    null: no limit."""
    rate: RateLimit = RateLimit()
    """Over all routes; off unless set."""


class Timeouts(Section):
    """Durations; 0 is possible only where it says what it means."""

    handshake: Duration = 10.0
    """From the connection to the end of its TLS handshake."""
    proxy_protocol: Duration = 5.0
    """For the PROXY protocol header, where one is demanded."""
    head: Duration = 10.0
    """From the first byte of a request head to its last (408)."""
    body: Duration = 30.0
    """Between two reads of a request body (408)."""
    body_grace: DurationOrZero = 20.0
    """After this long an upload must reach `limits.body_rate`. 0: from its start."""
    write: Duration = 30.0
    """A client or bot that takes no byte for this long is cut off."""
    keep_alive: Duration = 75.0
    """Between requests; above the 60 s of Telegram's sender, so that it closes first."""
    connect: Duration = 3.0
    """One attempt to reach the bot (504)."""
    response: DurationOrZero = 60.0
    """From the request to the head of the bot's response (504); 0: none."""
    idle: DurationOrZero = 60.0
    """Between two reads of the bot's response body; 0: none."""
    upstream_keep_alive: Duration = 4.0
    """Idle connections to the bot; below the 5 s of uvicorn and hypercorn; just below 2 s for gunicorn,
    always."""
    tunnel: DurationOrZero = 3600.0
    """Silence in a WebSocket; 0: none."""
    drain: DurationOrZero = 25.0
    """What SIGTERM grants to requests in flight; Kubernetes kills after 30 s. 0: cut at once."""
    retire: DurationOrUnlimited = 25.0
    """What workers that gave way to new ones (a reload, an upgrade) grant to their connections, WebSockets
    included; `unlimited`: until the third change after it."""


AccessLog = Annotated[
    Literal["json", "off"],
    BeforeValidator(lambda value: "off" if value is False else value),  # YAML 1.1 reads a bare `off` so
    WithJsonSchema({"enum": ["json", "off", False]}),
]


class Log(Section):
    """Access log on stdout, operator log on stderr."""

    access: AccessLog = "json"
    """One JSON line for each request, or `off`."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe message of the operator log."""


class Config(Section):
    """The whole configuration of one botproxy."""

    listen: tuple[Listen, ...] = (Listen(address=":443"),)
    """TLS listeners."""
    plain_listen: tuple[Listen, ...] = (Listen(address=":80"),)
    """Clear-text listeners: redirect to https and ACME http-01 files; `[]` turns them off."""
    acme_webroot: FileName | None = None
    """Directory of `certbot --webroot`; its `.well-known/acme-challenge/` is served on `plain_listen`."""
    workers: Workers = "auto"
    """Processes that serve; `auto`: one per CPU."""
    user: Account | None = None
    """Account of the workers when started as root, which nothing is served without."""
    state_dir: FileName | None = None
    """Where accepted certificates, the admin socket and the development CA live; `/var/lib/botproxy` for
    root, else `$XDG_STATE_HOME/botproxy`."""
    certificates: Annotated[tuple[Certificate, ...], Field(min_length=1)]
    """Pairs of `chain` and `key`; the first serves clients that name no host or an unknown one."""
    watch: Watch = Watch()
    """How changed certificate files are noticed."""
    tls: Tls = Tls()
    """What is spoken on `listen`."""
    upstreams: Annotated[dict[UpstreamName, Upstream], Field(min_length=1)] = {
        "bot": Upstream(url="http://127.0.0.1:8000")
    }
    """The bots by name; the name stands in logs and metrics."""
    routes: Annotated[tuple[Route, ...], Field(min_length=1)] = (Route(),)
    """Tried in this order; by default every request goes to the only upstream."""
    headers: Headers = Headers()
    """What is added to responses."""
    limits: Limits = Limits()
    """What a client may use up."""
    timeouts: Timeouts = Timeouts()
    """How long anything may take."""
    trusted_proxies: tuple[TrustedCidr, ...] = ()
    """Peers whose X-Forwarded-For and X-Request-ID are believed."""
    log: Log = Log()
    """What is written about requests and about botproxy itself."""
    admin: AdminSocket | None = None
    """Socket of `botproxy health`, `unix:/path`; in `state_dir` by default, `off` for none."""

    @field_validator("listen", "plain_listen", mode="before")
    @classmethod
    def _is_list(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            try:
                hint: str | None = f'write "{listen_address(value)}"'
            except Refused as refused:
                hint = refused.faults[0].hint
            listed = re.sub(r'("[^"]+")$', r"[\1]", hint) if hint else None
            raise Refused(Fault('a list of addresses like [":443"]', hint=listed))
        return value

    @field_validator("listen")
    @classmethod
    def _listens(cls, value: tuple[Listen, ...]) -> tuple[Listen, ...]:
        if not value:
            raise Refused(Fault('at least one address like ":443"'))
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> Config:
        if faults := contradictions(self.model_dump(include=_JUDGED)):
            raise Refused(*faults)
        return self


_JUDGED: Final = {
    "listen",
    "plain_listen",
    "acme_webroot",
    "certificates",
    "upstreams",
    "routes",
    "headers",
}


def contradictions_in(document: Mapping[str, object]) -> list[Fault]:
    """What contradicts in a document that is wrong elsewhere, too; what it leaves out has its default."""
    defaults = Config.model_construct(certificates=()).model_dump(include=_JUDGED)
    return contradictions({**defaults, **document})
