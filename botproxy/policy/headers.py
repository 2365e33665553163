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
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from botproxy.config.schema import Config, Hsts
from botproxy.errors import BadRequest
from botproxy.model import Field, Peer, RequestHead
from botproxy.policy import forwarded
from botproxy.policy.forwarded import client_address as client_address

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
_SWITCH = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"


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

_PASS, _STRIP, _NOMINATES, _REFUSE = range(4)
_KNOWN_NAMES = 1024
"""Names whose fate is remembered; an attacker's random ones must not fill the memory."""
_KNOWN_NAME_LENGTH = 64

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")


class TowardBot:
    """The fields of a request as the bot shall see them."""

    def __init__(self, config: Config) -> None:
        self._trusted = config.trusted_proxies
        self._underscores = {"pass": _PASS, "drop": _STRIP, "refuse": _REFUSE}[config.headers.underscores]
        self._fates: dict[bytes, int] = {}

    def request_id(self, peer: Peer, fields: Sequence[Field]) -> str:
        """The id that a trusted proxy gave the request, or a new one that nobody can guess."""
        if peer.trusted:
            given = [value for lower, _, value in fields if lower == b"x-request-id"]
            if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
                return given[0].decode("ascii")
        return new_request_id()

    def __call__(self, head: RequestHead, peer: Peer, client: str, scheme: bytes, request_id: str) -> bytes:
        """The block of a request. Raises BadRequest for names that would mislead the bot.

        `client` is what `client_address` says, `scheme` b"https" or b"http".
        """
        lines = [b"Host: " + head.authority]
        nominated: frozenset[bytes] = frozenset()
        fates = self._fates
        for lower, name, value in head.fields:
            fate = fates.get(lower)
            if fate is None:
                fate = self._learn(lower)
            if fate == _PASS:
                lines.append(name + b": " + value)
            elif fate == _NOMINATES and value not in _ORDINARY:
                nominated |= _nominated(value)
            elif fate == _REFUSE:
                raise BadRequest("a field name with _ that may be read as another one")
        if nominated:
            left = replace(head, fields=_without(nominated, head.fields))
            return self(left, peer, client, scheme, request_id)
        if head.expects_continue:
            lines.append(b"Expect: 100-continue")
        if peer.trusted:
            about = forwarded.lines_behind(peer, head.fields, self._trusted, head.authority, scheme)
        else:
            about = forwarded.lines(client, head.authority, peer.local_port, scheme)
        lines += (about, b"X-Request-ID: " + request_id.encode("ascii"), b"")
        block = b"\r\n".join(lines)
        return block if head.websocket_key is None else block + _SWITCH

    def _learn(self, lower: bytes) -> int:
        """What becomes of a field of this name."""
        if b"_" in lower:
            twin = lower.replace(b"_", b"-")
            fate = _REFUSE if twin in _NOT_FORWARDED or _is_ours(twin) else self._underscores
        elif lower == b"connection":
            fate = _NOMINATES
        else:
            fate = _STRIP if lower in _NOT_FORWARDED or _is_ours(lower) else _PASS
        if len(self._fates) < _KNOWN_NAMES and len(lower) <= _KNOWN_NAME_LENGTH:
            self._fates[lower] = fate
        return fate


def new_request_id() -> str:
    """16 hex digits that nobody can guess."""
    return os.urandom(8).hex()


def _is_ours(lower: bytes) -> bool:
    return lower in _OURS or lower.startswith(_OUR_FAMILIES)


def _nominated(value: bytes) -> frozenset[bytes]:
    """Names that a Connection field nominates. Raises BadRequest for those that nobody may remove."""
    names = _tokens(value) - _OPTIONS
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
        self._without_hsts = b"".join(self._lines.values())
        self._with_hsts = self._without_hsts + self._hsts
        self._override = headers.override
        self._special = _NOT_RELAYED | self._lines.keys() | {_HSTS, b"date"}

    def __call__(
        self,
        fields: Sequence[Field],
        *,
        tls_hsts: bool,
        host: str,
        switching: bool = False,
        date: bytes = b"",
    ) -> bytes:
        """The block of a response. `date` stands for a Date that the bot did not give (RFC 9110 6.6.1).

        `tls_hsts`: it goes over TLS with a certificate that HSTS may be promised for; `host`: name the
        client asked for, without port. `switching`: it says `Upgrade: websocket` (101 and 426).
        """
        promises = tls_hsts and _may_promise(host)
        special = self._special
        lines: list[bytes] = []
        own: set[bytes] = set()
        nominated: frozenset[bytes] = frozenset()
        for lower, name, value in fields:
            if lower not in special:
                lines.append(name + b": " + value)
            elif lower == b"connection":
                if value not in _ORDINARY:
                    nominated |= _tokens(value) - _OPTIONS
            elif lower == b"date":
                date = b""
                lines.append(name + b": " + value)
            elif lower not in _NOT_RELAYED and not self._override:
                if lower != _HSTS or (promises and lower not in own):  # RFC 6797 6.1, 7.2: once, over TLS
                    lines.append(name + b": " + value)
                own.add(lower)
        if nominated:
            left = _without(nominated, fields)
            return self(left, tls_hsts=tls_hsts, host=host, switching=switching, date=date)
        if date:
            lines.append(b"Date: " + date)
        if switching:
            lines.append(_SWITCH[:-2])
        lines.append(self._added(promises, own))
        return b"\r\n".join(lines)

    def _added(self, promises: bool, own: set[bytes]) -> bytes:
        """Our lines, except those for which the bot's `own` stand."""
        if not own:
            return self._with_hsts if promises else self._without_hsts
        lines = b"".join(line for lower, line in self._lines.items() if lower not in own)
        return lines + self._hsts if promises and _HSTS not in own else lines


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


def _tokens(value: bytes) -> frozenset[bytes]:
    return frozenset(token.strip(b" \t").lower() for token in value.split(b",")) - {b""}


def _without(nominated: frozenset[bytes], fields: Sequence[Field]) -> list[Field]:
    """`fields` as if the nominated ones, and the nomination, had not been sent."""
    gone = nominated | {b"connection"}
    return [field for field in fields if field[0] not in gone]
