"""What a message head means, or why it is refused (RFC 9110, RFC 9112).

A strict scanner takes the canonical form that nearly every message has, a second one
the same with spaces and tabs around values. What neither takes goes to h11, the grammar,
between two strict layers: `_reject_raw` before it (line ends, controls, folding), the
semantic checks after it. All ways end in the same checks, so that scanners decide speed,
never meaning. A sender of whom one head is known most probably sends another of the same
shape: for shapes that come often the strict scanner is made once more, with their names in it.

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
from botproxy.fields import Fields, Recent, Shape, keep
from botproxy.model import RequestHead, ResponseHead

RESPONSE_HEAD_LIMIT = 64 * 1024
RESPONSE_FIELDS_LIMIT = 200
OFTEN = 100
"""Heads of one shape until that is worth a scanner of its own, so that nobody has many made for little."""
FAMILIAR = 64
"""Shapes that get one in the life of a process, of requests and of responses; 1 MiB of each at most."""
FAMILIAR_FIELDS, FAMILIAR_BYTES = 24, 512
"""Fields, and bytes of their names, up to which one is made: more take longer than clients should wait."""

_VALUE = rb"[!-~\x80-\xff][\t -~\x80-\xff]*+(?<![ \t])"
_LINE = rb"[A-Za-z0-9-]++: " + _VALUE + rb"\r\n"
_LOOSE_LINE = rb"[A-Za-z0-9-]++:[\t -~\x80-\xff]*+\r\n"
_START = rb"([A-Z]{1,32}+) (/[!\"$-\[\]-~]*+) HTTP/1\.([01])\r\n"
_STATUS = rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t -~\x80-\xff]*+)?\r\n"
_REQUEST = re.compile(_START + rb"((?:" + _LINE + rb")*+)\r\n")
_LOOSE_REQUEST = re.compile(_START + rb"((?:" + _LOOSE_LINE + rb")*+)\r\n")
_RESPONSE = re.compile(_STATUS + rb"((?:" + _LINE + rb")*+)\r\n")
_LOOSE_RESPONSE = re.compile(_STATUS + rb"((?:" + _LOOSE_LINE + rb")*+)\r\n")

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^ ]+) (HTTP/([0-9])\.([0-9]))")
_METHOD = re.compile(rb"[A-Z][A-Z0-9_-]{0,31}")
_PATH = re.compile(rb"/[!\"$-\[\]-~]*")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#\\@]+)((?:[/?][!\"$-\[\]-~]*)?)")
_NAME = re.compile(rb"[A-Za-z0-9_-]+")
_USUAL_NAME = re.compile(rb"[A-Za-z0-9-]+")
_HOST = re.compile(rb"([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_LENGTH_DIGITS = 18
_ZERO = ord("0")
_WEBSOCKET_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
_BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_BARE_LINE_END_IN_PART = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_HOST_LIMIT = 255 + len(":65535")

_recent_requests: Recent = {}
_recent_responses: Recent = {}
_NOT_SERVED = frozenset({b"CONNECT", b"TRACE"})
_USUAL_OPTIONS = 64
"""Bytes of a Connection field that is worth remembering."""
_NO_OPTIONS: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Bounds of a request head."""

    head: int
    """Bytes."""
    fields: int
    request_line: int
    """Bytes."""


class _Familiar:
    """Strict scanners for heads of one shape each, which also take them apart.

    What such a one takes the strict scanner for all shapes takes too, and means the same by it. It is made
    once, which takes some milliseconds, and stays.
    """

    def __init__(self, start: bytes) -> None:
        self._start = start
        self._left = FAMILIAR

    def learn(self, shape: Shape) -> None:
        """`shape` has come often."""
        names = shape.names
        if not self._left or len(names) > FAMILIAR_FIELDS or sum(map(len, names)) > FAMILIAR_BYTES:
            return
        if all(map(_USUAL_NAME.fullmatch, names)):
            self._left -= 1
            lines = [b"(" + re.escape(start) + _VALUE + rb")\r\n" for start in shape.starts]
            shape.plans[self] = re.compile(self._start + b"".join(lines) + rb"\r\n")
            keep(shape)

    def match(self, head: bytes, shape: Shape) -> re.Match[bytes] | None:
        """The groups of the start line, then each line; None for any other head."""
        pattern: re.Pattern[bytes] | None = shape.plans.get(self)
        return None if pattern is None else pattern.fullmatch(head)


_familiar_requests = _Familiar(_START)
_familiar_responses = _Familiar(_STATUS)


# Requests


def parse_request(head: bytes, limits: HeadLimits, last: Shape | None = None) -> RequestHead:
    """The meaning of a complete request head, blank line included. Raises errors.ClientError.

    `last`: the shape of the last head from the same sender, if that is familiar.
    """
    if last is not None and (match := _familiar_requests.match(head, last)) is not None:
        method, target, minor, *lines = match.groups()
        fields = Fields(lines, last)
    elif (match := _REQUEST.fullmatch(head)) is not None:
        method, target, minor, block = match.groups()
        fields = Fields.scanned(block, _recent_requests)
        if fields.shape.met % OFTEN == 0 and not fields.shape.familiar:
            _familiar_requests.learn(fields.shape)
    elif (match := _LOOSE_REQUEST.fullmatch(head)) is not None:
        method, target, minor, block = match.groups()
        fields = Fields.scanned(_tidied(block), _recent_requests)
    else:
        return _parse_unusual_request(head, limits)
    if len(target) > limits.request_line - len(method) - 10:
        raise errors.RequestLineTooLong
    if len(fields.lines) > limits.fields:
        raise errors.HeadTooLarge("too many fields")
    if method in _NOT_SERVED:
        raise errors.MethodNotAllowed
    number = 1 if minor == b"1" else 0
    return _request(method, target, number, fields, _authority(number, fields))


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
    fields = Fields.of(*event.headers.raw_items())
    for name in fields.shape.names:
        if _NAME.fullmatch(name) is None:
            raise errors.BadRequest("a field name outside letters, digits, - and _")
    if _METHOD.fullmatch(method) is None:
        raise errors.BadRequest("the method is no upper-case token of at most 32 characters")
    if method in _NOT_SERVED:
        raise errors.MethodNotAllowed
    number = int(version[-1:])
    target, authority = _resolve_target(method, target, _authority(number, fields))
    return _request(method, target, number, fields, authority)


def _request(method: bytes, target: bytes, minor: int, fields: Fields, authority: bytes) -> RequestHead:
    names = fields.shape.places
    host = parse_host(authority) if authority else ""
    options = _options(fields) if b"connection" in names else _NO_OPTIONS
    length = _length(fields, errors.BadRequest) if b"content-length" in names else None
    chunked = b"transfer-encoding" in names and _is_chunked(minor, length, fields)
    has_body = chunked or bool(length)
    websocket_key = None
    if b"upgrade" in names and b"upgrade" in options:
        websocket_key = _websocket_key(method, minor, fields, has_body)
    return RequestHead(
        method,
        target,
        minor,
        fields,
        authority,
        host,
        length,
        chunked,
        b"close" not in options if minor else b"keep-alive" in options,
        b"expect" in names and _expects_continue(minor, fields.values(b"expect")) and has_body,
        websocket_key,
    )


def _authority(minor: int, fields: Fields) -> bytes:
    """The Host field; empty where there may be none."""
    host = fields.sole(b"host")
    if host:
        return host
    if host is not None:
        raise errors.BadRequest("an empty Host field")
    if b"host" in fields.shape.places:
        raise errors.BadRequest("more than one Host field")
    if minor:
        raise errors.BadRequest("no Host field")
    return b""


def _resolve_target(method: bytes, target: bytes, authority: bytes) -> tuple[bytes, bytes]:
    """Origin-form target and authority, for each of the forms of RFC 9112 3.2 that a bot may see."""
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


def _is_chunked(minor: int, length: int | None, fields: Fields) -> bool:
    """What Transfer-Encoding says of a request; everything ambiguous is refused (RFC 9112 6.3)."""
    if length is not None:
        raise errors.BadRequest("both Content-Length and Transfer-Encoding")
    if not minor:
        raise errors.BadRequest("Transfer-Encoding in HTTP/1.0")
    coding = fields.sole(b"transfer-encoding")
    if coding is None:
        raise errors.BadRequest("more than one Transfer-Encoding field")
    if coding.lower() != b"chunked":
        raise errors.NotImplementedCoding
    return True


def _length(fields: Fields, error: type[errors.ProxyError]) -> int:
    value = fields.sole(b"content-length")
    if value is None:
        raise error("more than one Content-Length field")
    if not value.isdigit() or len(value) > _LENGTH_DIGITS or (value[0] == _ZERO and len(value) > 1):
        raise error("Content-Length is no plain decimal number")
    return int(value)


def _expects_continue(minor: int, values: list[bytes]) -> bool:
    if not minor:
        return False  # RFC 9110 10.1.1: ignored in HTTP/1.0
    if len(values) != 1 or values[0].lower() != b"100-continue":
        raise errors.ExpectationFailed
    return True


def _websocket_key(method: bytes, minor: int, fields: Fields, body: bool) -> bytes | None:
    """The key of a WebSocket handshake (RFC 6455 4.1); None for another protocol, which is not offered on."""
    protocols = fields.values(b"upgrade")
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


def parse_response(head: bytes, last: Shape | None = None) -> ResponseHead:
    """The meaning of a complete response head, blank line included. Raises errors.BadResponse.

    `last`: as for a request.
    """
    if last is not None and (match := _familiar_responses.match(head, last)) is not None:
        minor, status, *lines = match.groups()
        fields = Fields(lines, last)
    elif (match := _RESPONSE.fullmatch(head)) is not None:
        minor, status, block = match.groups()
        fields = Fields.scanned(block, _recent_responses)
        if fields.shape.met % OFTEN == 0 and not fields.shape.familiar:
            _familiar_responses.learn(fields.shape)
    elif (match := _LOOSE_RESPONSE.fullmatch(head)) is not None:
        minor, status, block = match.groups()
        fields = Fields.scanned(_tidied(block), _recent_responses)
    else:
        return _response(*_parse_unusual_response(head))
    if len(fields.lines) > RESPONSE_FIELDS_LIMIT:
        raise errors.BadResponse("too many fields")
    return _response(1 if minor == b"1" else 0, int(status), fields)


def _response(minor: int, status: int, fields: Fields) -> ResponseHead:
    names = fields.shape.places
    length = _length(fields, errors.BadResponse) if b"content-length" in names else None
    chunked = b"transfer-encoding" in names
    if chunked:
        if length is not None:
            raise errors.BadResponse("both Content-Length and Transfer-Encoding")
        codings = fields.values(b"transfer-encoding")
        if not minor or len(codings) != 1 or codings[0].lower() != b"chunked":
            raise errors.BadResponse("a Transfer-Encoding that is not chunked in HTTP/1.1")
    options = _options(fields) if b"connection" in names else _NO_OPTIONS
    return ResponseHead(status, minor, fields, length, chunked, bool(minor) and b"close" not in options)


def reject_early_response(part: bytes, checked: int) -> None:
    """Refuse an incomplete response head that no further byte can make good. Raises errors.BadResponse."""
    if not part.startswith(b"HTTP/1."[: len(part)]):
        raise errors.BadResponse("what the bot sends is not HTTP/1")
    if len(part) > RESPONSE_HEAD_LIMIT:
        raise errors.BadResponse("the head is too long")
    if _BARE_LINE_END_IN_PART.search(part, max(0, checked - 1)):
        raise errors.BadResponse("a bare CR or LF in the head")


def _parse_unusual_response(head: bytes) -> tuple[int, int, Fields]:
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
    return int(event.http_version[-1:]), event.status_code, Fields.of(*event.headers.raw_items())


# Both


def _tidied(block: bytes) -> bytes:
    """A scanned block with one space before each value, and none behind it."""
    lines = block.split(b"\r\n")
    lines.pop()
    parted = (line.partition(b":") for line in lines)
    return b"".join(b"%b: %b\r\n" % (name, value.strip(b" \t")) for name, _, value in parted)


def _options(fields: Fields) -> frozenset[bytes]:
    """Connection options, lower case (RFC 9110 7.6.1)."""
    sole = fields.sole(b"connection")
    value = b",".join(fields.values(b"connection")) if sole is None else sole
    return _usual_options(value) if len(value) <= _USUAL_OPTIONS else _options_of(value)


def _options_of(value: bytes) -> frozenset[bytes]:
    return frozenset(token.strip(b" \t").lower() for token in value.split(b","))


_usual_options = lru_cache(maxsize=256)(_options_of)


def _reject_raw(head: bytes, error: type[errors.ProxyError]) -> None:
    """What h11 lets pass and a front door must not: other line ends, controls, folded lines."""
    if _BARE_LINE_END.search(head):
        raise error("a bare CR or LF in the head")
    if _CONTROL.search(head):
        raise error("a control character in the head")
    if b"\r\n " in head or b"\r\n\t" in head:
        raise error("a folded line in the head")
