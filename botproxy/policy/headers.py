"""The header fields that cross: toward the bot, and toward the client.

Both directions begin by removing what belongs to one connection only, and what
`Connection` nominates (RFC 9110 7.6.1); then the fields of our own are added, so
nothing that a sender nominates can remove them. Everything else passes byte for
byte, in order. The framing (Content-Length, Transfer-Encoding) and the Connection
field of an ordinary message are their writer's, not ours.

Blocks are lines that end in CRLF, without the empty one. Before: `policy.routes`.
After: `upstream.connection` with the one block, `http.exchange` with the other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import compress
from typing import TYPE_CHECKING

from botproxy.errors import BadRequest
from botproxy.fields import Fields, Shape
from botproxy.model import Peer, RequestHead
from botproxy.policy import forwarded
from botproxy.policy.forwarded import client_address as client_address

if TYPE_CHECKING:
    from botproxy.config.schema import Config, Hsts

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-authentication-info",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
_OPTIONS = (_HOP_BY_HOP | {b"close"}) - {b"transfer-encoding"}
"""What `Connection` may say without consequence: it is removed anyway."""
_ORDINARY = frozenset(
    {b"keep-alive", b"Keep-Alive", b"close", b"Upgrade", b"upgrade", b"keep-alive, Upgrade"}
)
"""Values of `Connection` that are not worth taking apart."""
_NOTHING: frozenset[bytes] = frozenset()
_SWITCH = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
_EXPECT = (b"Expect: 100-continue",)


# Toward the bot


_OURS = frozenset(
    {
        b"forwarded",
        b"forwarded-for",
        b"x-real-ip",
        b"cf-connecting-ip",
        b"client-ip",
        b"fastly-client-ip",
        b"front-end-https",
        b"true-client-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-request-id",
        b"x-proxyuser-ip",
        b"x-request-start",
        b"x-rewrite-url",
        b"x-scheme",
        b"x-url-scheme",
    }
)
_OUR_FAMILIES = (b"x-forwarded", b"x-original-")
"""Fields by which bots know clients and the first proxy: only we may write them."""
_NOT_FORWARDED = _HOP_BY_HOP | {b"host", b"content-length", b"expect", b"proxy"}  # Proxy: CVE-2016-5385
_NEVER_NOMINATED = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"cookie", b"authorization", b"expect"}
)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")


class TowardBot:
    """The fields of a request as the bot shall see them."""

    def __init__(self, config: Config) -> None:
        self._trusted = config.trusted_proxies
        self._underscores = config.headers.underscores

    def request_id(self, peer: Peer, fields: Fields) -> str:
        """The id that a trusted proxy gave the request, or a new one that nobody can guess."""
        if peer.trusted:
            given = fields.sole(b"x-request-id")
            if given is not None and _REQUEST_ID.fullmatch(given):
                return given.decode("ascii")
        return new_request_id()

    def block(self, head: RequestHead, peer: Peer, client: str, scheme: bytes, request_id: str) -> bytes:
        """The block of a request. Raises BadRequest for names that would mislead the bot.

        `client` is what `client_address` says, `scheme` b"https" or b"http".
        """
        fields = head.fields
        shape = fields.shape
        if b"connection" in shape.places and (nominated := _nominated(fields)):
            left = replace(head, fields=fields.without(nominated | {b"connection"}))
            return self.block(left, peer, client, scheme, request_id)
        passing = shape.plans.get(self)
        if passing is None:
            passing = shape.plans[self] = tuple(self._passes(name) for name in shape.lower)
        if peer.trusted:
            about = forwarded.lines_behind(peer, fields, self._trusted, head.authority, scheme)
        else:
            about = forwarded.lines(client, head.authority, peer.local_port, scheme)
        lines = [
            b"Host: " + head.authority,
            *compress(fields.lines, passing),
            *(_EXPECT if head.expects_continue else ()),
            about,
            b"X-Request-ID: " + request_id.encode(),
            b"",
        ]
        block = b"\r\n".join(lines)
        return block if head.websocket_key is None else block + _SWITCH

    def _passes(self, lower: bytes) -> bool:
        """Whether a field of this name goes to the bot. Raises BadRequest."""
        if b"_" not in lower:
            return lower not in _NOT_FORWARDED and not _is_ours(lower)
        twin = lower.replace(b"_", b"-")
        if twin in _NOT_FORWARDED or _is_ours(twin) or self._underscores == "refuse":
            raise BadRequest("a field name with _ that may be read as another one")
        return self._underscores == "pass"


def new_request_id() -> str:
    """16 hex digits that nobody can guess."""
    return os.urandom(8).hex()


def _is_ours(lower: bytes) -> bool:
    return lower in _OURS or lower.startswith(_OUR_FAMILIES)


def _nominated(fields: Fields) -> frozenset[bytes]:
    """What Connection nominates. Raises BadRequest for names that nobody may remove."""
    names = _nominations(fields)
    for name in names:
        if name in _NEVER_NOMINATED or _is_ours(name):
            raise BadRequest("Connection nominates a field that is not its sender's to remove")
    return names


# Toward the client


_HSTS = b"strict-transport-security"
_NOT_RELAYED = _HOP_BY_HOP | {b"content-length", b"server", b"x-powered-by"}
_PRESETS: dict[str, dict[str, str]] = {
    "none": {},
    "api": {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"},
}
_PRESETS["web"] = _PRESETS["api"] | {
    "Content-Security-Policy": "frame-ancestors 'self'",
    "X-Frame-Options": "SAMEORIGIN",
    "Permissions-Policy": "accelerometer=(), camera=(), display-capture=(), geolocation=(), gyroscope=(), "
    "magnetometer=(), microphone=(), midi=(), payment=(), usb=()",
}


class TowardClient:
    """The fields of a response as the world shall see them; our own responses take the same way."""

    def __init__(self, config: Config) -> None:
        headers = config.headers
        ours = _PRESETS[headers.preset] | headers.set
        self._lines = {name.lower().encode(): f"{name}: {value}\r\n".encode() for name, value in ours.items()}
        self._hsts = _hsts_line(headers.hsts)
        self._override = headers.override
        self._special = _NOT_RELAYED | self._lines.keys() | {_HSTS, b"date"}

    def block(
        self, fields: Fields, tls_hsts: bool, host: str, date: Callable[[], bytes], switching: bool = False
    ) -> bytes:
        """The block of a response.

        `tls_hsts`: it goes over TLS with a certificate that HSTS may be promised for; `host`: name the
        client asked for, without port. `date` is asked when the bot gave no Date (RFC 9110 6.6.1).
        `switching`: it says `Upgrade: websocket` (101 and 426).
        """
        shape = fields.shape
        if b"connection" in shape.places and (nominated := _nominations(fields)):
            left = fields.without(nominated | {b"connection"})
            return self.block(left, tls_hsts, host, date, switching)
        plans: tuple[_Passage, _Passage] | None = shape.plans.get(self)
        if plans is None:
            plans = shape.plans[self] = self._passage(shape, False), self._passage(shape, True)
        passage = plans[tls_hsts and _may_promise(host)]
        lines = [*compress(fields.lines, passage.passing)]
        if b"date" not in shape.places:
            lines.append(b"Date: " + date())
        if switching:
            lines.append(_SWITCH[:-2])
        lines.append(passage.added)
        return b"\r\n".join(lines)

    def _passage(self, shape: Shape, promises: bool) -> _Passage:
        """For a response of this shape. `promises`: HSTS may be promised."""
        passing: list[bool] = []
        own: set[bytes] = set()
        for lower in shape.lower:
            if lower not in self._special or lower == b"date":
                passing.append(True)
            elif lower in _NOT_RELAYED or self._override:
                passing.append(False)
            else:  # RFC 6797 6.1, 7.2: HSTS once, over TLS
                passing.append(lower != _HSTS or (promises and lower not in own))
                own.add(lower)
        return _Passage(tuple(passing), self._added(promises, own))

    def _added(self, promises: bool, own: set[bytes]) -> bytes:
        """Our lines, except those for which the bot's `own` stand."""
        lines = b"".join(line for lower, line in self._lines.items() if lower not in own)
        return lines + self._hsts if promises and _HSTS not in own else lines


@dataclass(frozen=True, slots=True)
class _Passage:
    """What becomes of the fields of a response."""

    passing: tuple[bool, ...]
    """Which of them pass."""
    added: bytes
    """Our lines."""


def _hsts_line(hsts: Hsts) -> bytes:
    """RFC 6797 6.1; a promise that is switched off takes an earlier one back."""
    if not hsts.enabled:
        return b"Strict-Transport-Security: max-age=0\r\n"
    value = f"max-age={int(hsts.max_age)}"
    value += "; includeSubDomains" if hsts.include_subdomains else ""
    value += "; preload" if hsts.preload else ""
    return f"Strict-Transport-Security: {value}\r\n".encode()


@lru_cache(maxsize=1024)
def _may_promise(host: str) -> bool:
    """Whether `host` is a name that a browser would keep a promise for (RFC 6797 8.1.1: no addresses)."""
    last = host.rpartition(".")[2]
    return bool(host) and not host.startswith("[") and not last.isdigit() and last != "localhost"


# Both


def _nominations(fields: Fields) -> frozenset[bytes]:
    """Names in Connection, lower case, of which something follows (RFC 9110 7.6.1)."""
    if fields.sole(b"connection") in _ORDINARY:
        return _NOTHING
    nominated = _NOTHING
    for value in fields.values(b"connection"):
        if value not in _ORDINARY:
            nominated |= frozenset(token.strip(b" \t").lower() for token in value.split(b","))
    return nominated - _OPTIONS - {b""}
