"""What a message head means, or why it is refused (RFC 9110, RFC 9112).

A strict scanner takes the canonical form that nearly every message has. What it
does not take goes to h11, the grammar, between two strict layers: `_reject_raw`
before it (line ends, controls, folding), the semantic checks after it. Both ways
end in the same checks, so the scanner decides speed, never meaning.

Pure: complete heads in, `RequestHead` or `ResponseHead` out. Collecting the bytes
of a head is `http.h1`'s and `upstream.connection`'s.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

import h11

from botproxy import errors
from botproxy.model import Field, RequestHead, ResponseHead

RESPONSE_HEAD_LIMIT = 64 * 1024
RESPONSE_FIELDS_LIMIT = 200

_FIELDS = rb"((?:[A-Za-z0-9-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n)*)\r\n"
_REQUEST = re.compile(rb"([A-Z]{1,32}) (/[!\"$-\[\]-~]*) HTTP/1\.([01])\r\n" + _FIELDS)
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\x00-\x08\x0a-\x1f\x7f]*)?\r\n" + _FIELDS)

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^ ]+) (HTTP/([0-9])\.([0-9]))")
_METHOD = re.compile(rb"[A-Z][A-Z0-9_-]{0,31}")
_PATH = re.compile(rb"/[!\"$-\[\]-~]*")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#\\@]+)((?:[/?][!\"$-\[\]-~]*)?)")
_NAME = re.compile(rb"[A-Za-z0-9_-]+")
_HOST = re.compile(rb"([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_DIGITS = re.compile(rb"0|[1-9][0-9]{0,17}")
_WEBSOCKET_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
_BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_BARE_LINE_END_IN_PART = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_HOST_LIMIT = 255 + len(":65535")

_STEERING = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"}
)
_NONE: dict[bytes, list[bytes]] = {}


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Bounds of a request head."""

    head: int
    """Bytes."""
    fields: int
    request_line: int
    """Bytes."""


# Requests


def parse_request(head: bytes, limits: HeadLimits) -> RequestHead:
    """The meaning of a complete request head, blank line included. Raises errors.ClientError."""
    match = _REQUEST.fullmatch(head)
    if match is None:
        return _parse_unusual_request(head, limits)
    method, target, minor, block = match.groups()
    if len(target) > limits.request_line - len(method) - 10:
        raise errors.RequestLineTooLong
    fields, steering = _split(block, limits.fields)
    return _request(method, target, int(minor), fields, steering)


def reject_early(part: bytes, checked: int, limits: HeadLimits) -> None:
    """Refuse an incomplete head that no further byte can make good. Raises errors.ClientError.

    The first `checked` bytes were looked at before.
    """
    first_line = part.find(b"\r\n")
    if (len(part) if first_line < 0 else first_line) > limits.request_line:
        raise errors.RequestLineTooLong
    if len(part) > limits.head:
        raise errors.HeadTooLarge
    if _BARE_LINE_END_IN_PART.search(part, max(0, checked - 1)):
        raise errors.BadRequest("a bare CR or LF in the head")
    if first_line >= max(0, checked - 1) and not _REQUEST_LINE.fullmatch(part, 0, first_line):
        raise errors.BadRequest("the request line is malformed")


def _parse_unusual_request(head: bytes, limits: HeadLimits) -> RequestHead:
    _reject_raw(head, errors.BadRequest)
    line = head[: head.index(b"\r\n")]
    if len(line) > limits.request_line:
        raise errors.RequestLineTooLong
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise errors.BadRequest("the request line is malformed")
    method, target, version = match[1], match[2], match[3]
    if version not in (b"HTTP/1.0", b"HTTP/1.1"):
        raise errors.VersionNotSupported
    if head.count(b"\r\n") - 2 > limits.fields:
        raise errors.HeadTooLarge("too many fields")
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head) + 1)
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        if error.error_status_hint == 501:
            raise errors.NotImplementedCoding from None
        raise errors.BadRequest("the head does not follow the grammar") from None
    if not isinstance(event, h11.Request):
        raise errors.BadRequest("the head does not follow the grammar")
    fields, steering = _collect(list(event.headers.raw_items()))
    for lower, _, _ in fields:
        if _NAME.fullmatch(lower) is None:
            raise errors.BadRequest("a field name outside letters, digits, - and _")
    if _METHOD.fullmatch(method) is None:
        raise errors.BadRequest("the method is no upper-case token of at most 32 characters")
    return _request(method, target, int(version[-1:]), fields, steering)


def _request(
    method: bytes, target: bytes, minor: int, fields: list[Field], steering: dict[bytes, list[bytes]]
) -> RequestHead:
    if method in (b"CONNECT", b"TRACE"):
        raise errors.MethodNotAllowed
    target, authority = _resolve_target(method, target, minor, steering)
    host = parse_host(authority) if authority else ""
    options = _tokens(steering.get(b"connection"))
    length, chunked = _request_framing(minor, steering)
    websocket_key = None
    if b"upgrade" in steering and b"upgrade" in options:
        websocket_key = _websocket_key(method, minor, fields, steering, bool(length) or chunked)
    expects = b"expect" in steering and _expects_continue(minor, steering[b"expect"])
    return RequestHead(
        method=method,
        target=target,
        minor=minor,
        fields=fields,
        authority=authority,
        host=host,
        content_length=length,
        chunked=chunked,
        keep_alive=b"close" not in options if minor else b"keep-alive" in options,
        expects_continue=expects and (chunked or bool(length)),
        websocket_key=websocket_key,
    )


def _resolve_target(
    method: bytes, target: bytes, minor: int, steering: dict[bytes, list[bytes]]
) -> tuple[bytes, bytes]:
    """Origin-form target and authority, for each of the forms of RFC 9112 3.2 that a bot may see."""
    hosts = steering.get(b"host", ())
    if len(hosts) > 1:
        raise errors.BadRequest("more than one Host field")
    if not hosts and minor:
        raise errors.BadRequest("no Host field")
    authority = hosts[0] if hosts else b""
    if hosts and not authority:
        raise errors.BadRequest("an empty Host field")
    if _PATH.fullmatch(target) or (target == b"*" and method == b"OPTIONS"):
        return target, authority
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise errors.BadRequest("the target has none of the forms served")
    if authority and authority.lower() != absolute[1].lower():
        raise errors.BadRequest("the target names another host than the Host field")
    path = absolute[2]
    return (path if path.startswith(b"/") else b"/" + path), authority or absolute[1]


@lru_cache(maxsize=1024)
def parse_host(authority: bytes) -> str:
    """Host of a Host field: lower case, no port, no trailing dot. Raises errors.BadRequest."""
    match = _HOST.fullmatch(authority) if len(authority) <= _HOST_LIMIT else None
    if match is None or (match[2] is not None and not 1 <= int(match[2]) <= 65535):
        raise errors.BadRequest("the Host field is malformed")
    host = match[1].decode("ascii").lower()
    if host.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(host[1:-1])}]"
        except ValueError:
            raise errors.BadRequest("the Host field is malformed") from None
    return host.removesuffix(".")


def _request_framing(minor: int, steering: dict[bytes, list[bytes]]) -> tuple[int | None, bool]:
    """Content-Length and whether the body is chunked; everything ambiguous is refused (RFC 9112 6.3)."""
    codings = steering.get(b"transfer-encoding")
    lengths = steering.get(b"content-length")
    if codings is None:
        return (None if lengths is None else _length(lengths, errors.BadRequest)), False
    if lengths is not None:
        raise errors.BadRequest("both Content-Length and Transfer-Encoding")
    if not minor:
        raise errors.BadRequest("Transfer-Encoding in HTTP/1.0")
    if len(codings) != 1:
        raise errors.BadRequest("more than one Transfer-Encoding field")
    if codings[0].lower() != b"chunked":
        raise errors.NotImplementedCoding
    return None, True


def _length(values: list[bytes], error: type[errors.ProxyError]) -> int:
    if len(values) != 1:
        raise error("more than one Content-Length field")
    if _DIGITS.fullmatch(values[0]) is None:
        raise error("Content-Length is no plain decimal number")
    return int(values[0])


def _expects_continue(minor: int, values: list[bytes]) -> bool:
    if not minor:
        return False  # RFC 9110 10.1.1: ignored in HTTP/1.0
    if len(values) != 1 or values[0].lower() != b"100-continue":
        raise errors.ExpectationFailed
    return True


def _websocket_key(
    method: bytes, minor: int, fields: list[Field], steering: dict[bytes, list[bytes]], body: bool
) -> bytes | None:
    """The key of a WebSocket handshake (RFC 6455 4.1); None for another protocol, which is not offered on."""
    protocols = steering[b"upgrade"]
    if protocols[0].lower() != b"websocket" or len(protocols) != 1:
        if any(b"websocket" in value.lower() for value in protocols):
            raise errors.BadRequest("Upgrade offers WebSocket together with something else")
        return None
    if method != b"GET" or not minor or body:
        raise errors.BadRequest("a WebSocket handshake is a GET in HTTP/1.1 without a body")
    offers = [(lower, value) for lower, _, value in fields if lower.startswith(b"sec-websocket-")]
    if not all(value.isascii() for _, value in offers):
        raise errors.BadRequest("a WebSocket field with bytes outside ASCII")
    keys = [value for lower, value in offers if lower == b"sec-websocket-key"]
    versions = [value for lower, value in offers if lower == b"sec-websocket-version"]
    if versions != [b"13"]:
        raise errors.UpgradeRequired
    if len(keys) != 1 or _WEBSOCKET_KEY.fullmatch(keys[0]) is None:
        raise errors.BadRequest("Sec-WebSocket-Key is missing or malformed")
    return keys[0]


# Responses


def parse_response(head: bytes) -> ResponseHead:
    """The meaning of a complete response head, blank line included. Raises errors.BadResponse."""
    match = _RESPONSE.fullmatch(head)
    if match is None:
        minor, status, fields, steering = _parse_unusual_response(head)
    else:
        minor, status = int(match[1]), int(match[2])
        fields, steering = _split(match[3], RESPONSE_FIELDS_LIMIT, errors.BadResponse)
    codings = steering.get(b"transfer-encoding")
    lengths = steering.get(b"content-length")
    length = None if lengths is None else _length(lengths, errors.BadResponse)
    if codings is not None:
        if length is not None:
            raise errors.BadResponse("both Content-Length and Transfer-Encoding")
        if not minor or len(codings) != 1 or codings[0].lower() != b"chunked":
            raise errors.BadResponse("a Transfer-Encoding that is not chunked in HTTP/1.1")
    options = _tokens(steering.get(b"connection"))
    return ResponseHead(
        status=status,
        minor=minor,
        fields=fields,
        content_length=length,
        chunked=codings is not None,
        keep_alive=bool(minor) and b"close" not in options,
    )


def reject_early_response(part: bytes, checked: int) -> None:
    """Refuse an incomplete response head that no further byte can make good. Raises errors.BadResponse."""
    if not part.startswith(b"HTTP/1."[: len(part)]):
        raise errors.BadResponse("what the bot sends is not HTTP/1")
    if len(part) > RESPONSE_HEAD_LIMIT:
        raise errors.BadResponse("the head is too long")
    if _BARE_LINE_END_IN_PART.search(part, max(0, checked - 1)):
        raise errors.BadResponse("a bare CR or LF in the head")


def _parse_unusual_response(head: bytes) -> tuple[int, int, list[Field], dict[bytes, list[bytes]]]:
    _reject_raw(head, errors.BadResponse)
    if head.count(b"\r\n") - 2 > RESPONSE_FIELDS_LIMIT:
        raise errors.BadResponse("too many fields")
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=len(head) + 1)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "bot")]))
    connection.send(h11.EndOfMessage())
    try:
        connection.receive_data(head)
        event = connection.next_event()
    except h11.RemoteProtocolError:
        raise errors.BadResponse("the head does not follow the grammar") from None
    if not isinstance(event, h11.Response | h11.InformationalResponse):
        raise errors.BadResponse("the head does not follow the grammar")
    if event.http_version not in (b"1.0", b"1.1"):
        raise errors.BadResponse("an HTTP version other than 1.0 and 1.1")
    fields, steering = _collect(list(event.headers.raw_items()))
    return int(event.http_version[-1:]), event.status_code, fields, steering


# Both


def _split(
    block: bytes, limit: int, error: type[errors.ProxyError] = errors.HeadTooLarge
) -> tuple[list[Field], dict[bytes, list[bytes]]]:
    """Fields of a scanned block, and the values of those that steer the connection."""
    fields: list[Field] = []
    steering = _NONE
    lines = block.split(b"\r\n")
    lines.pop()
    if len(lines) > limit:
        raise error("too many fields")
    for line in lines:
        name, _, value = line.partition(b":")
        lower = name.lower()
        value = value.strip(b" \t")
        fields.append((lower, name, value))
        if lower in _STEERING:
            if steering is _NONE:
                steering = {}
            steering.setdefault(lower, []).append(value)
    return fields, steering


def _collect(items: list[tuple[bytes, bytes]]) -> tuple[list[Field], dict[bytes, list[bytes]]]:
    fields = [(name.lower(), name, value) for name, value in items]
    steering: dict[bytes, list[bytes]] = {}
    for lower, _, value in fields:
        if lower in _STEERING:
            steering.setdefault(lower, []).append(value)
    return fields, steering


def _tokens(values: list[bytes] | None) -> frozenset[bytes]:
    """Connection options, lower case (RFC 9110 7.6.1)."""
    return frozenset() if values is None else _tokens_of(b",".join(values))


@lru_cache(maxsize=256)
def _tokens_of(value: bytes) -> frozenset[bytes]:
    return frozenset(token.strip(b" \t").lower() for token in value.split(b","))


def _reject_raw(head: bytes, error: type[errors.ProxyError]) -> None:
    """What h11 lets pass and a front door must not: other line ends, controls, folded lines."""
    if _BARE_LINE_END.search(head):
        raise error("a bare CR or LF in the head")
    if _CONTROL.search(head):
        raise error("a control character in the head")
    if b"\r\n " in head or b"\r\n\t" in head:
        raise error("a folded line in the head")
