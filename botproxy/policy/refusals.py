"""What a client is told when its request fails: the one mapping from errors to responses.

The body is short, says what went wrong, the id to look for in the log and the
configuration key that changes the rule. It never holds a byte of the request, and
never `detail`, which is for the log. Framing and the headers that stand on every
response are added later.

Before: `proxy`, `server.plain`. After: `policy.headers.TowardClient`.
"""

from __future__ import annotations

import json
import re

from botproxy.errors import ProxyError
from botproxy.fields import Fields

METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
"""Allow of a 405; other methods pass too, but those two that are refused are not among these."""
RETRY_AFTER = {429: 1, 503: 5}
"""Seconds, where the error does not know better."""
_ACCEPT_LIMIT = 1024
_QUALITY = re.compile(rb"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")  # RFC 9110 12.4.2

_TEXT = (b"Content-Type", b"text/plain; charset=utf-8")
_JSON = (b"Content-Type", b"application/json")
_NO_STORE = (b"Cache-Control", b"no-store")
_BY_STATUS: dict[int, list[tuple[bytes, bytes]]] = {
    405: [(b"Allow", METHODS)],  # RFC 9110 15.5.6
    426: [  # RFC 9110 15.5.22, RFC 6455 4.4
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"websocket"),
        (b"Sec-WebSocket-Version", b"13"),
    ],
}


def render(error: ProxyError, request_id: str, accept: bytes | None) -> tuple[int, Fields, bytes]:
    """Status, fields without framing, and body of the response to a request that failed with `error`.

    `accept` is the Accept field of the request. Must not be called when nobody is left to tell,
    that is when `error.status` is None.
    """
    status = error.status
    if status is None:
        raise ValueError(f"{error.code} has no response")
    as_json = accept is not None and _prefers_json(accept)
    fields = [_JSON if as_json else _TEXT, _NO_STORE, *_BY_STATUS.get(status, ())]
    retry_after = error.retry_after if error.retry_after is not None else RETRY_AFTER.get(status)
    if retry_after is not None:
        fields.append((b"Retry-After", b"%d" % retry_after))
    return status, Fields.of(*fields), (_json if as_json else _text)(error, status, request_id)


# Private


def _text(error: ProxyError, status: int, request_id: str) -> bytes:
    facts = [f"request id {request_id}"] if request_id else []
    if error.key is not None:
        facts.append(f"configuration key {error.key}")
    behind = f" ({', '.join(facts)})" if facts else ""
    return f"botproxy: {status}: {error.says}{behind}\n".encode()


def _json(error: ProxyError, status: int, request_id: str) -> bytes:
    answer: dict[str, object] = {"status": status, "error": error.code, "message": error.says}
    if request_id:
        answer["request_id"] = request_id
    if error.key is not None:
        answer["key"] = error.key
    return json.dumps({"botproxy": answer}).encode("ascii") + b"\n"


def _prefers_json(accept: bytes) -> bool:
    """Whether JSON is asked for by name, and plain text not more so (RFC 9110 12.5.1)."""
    if len(accept) > _ACCEPT_LIMIT or b"json" not in (lowered := accept.lower()):
        return False
    json_quality = 0.0
    text_quality = {b"*/*": 0.0, b"text/*": -1.0, b"text/plain": -1.0}
    for part in lowered.split(b","):
        media, *parameters = (piece.strip(b" \t") for piece in part.split(b";"))
        if media in (b"application/json", b"application/problem+json"):
            json_quality = max(json_quality, _quality(parameters))
        elif media in text_quality:
            text_quality[media] = _quality(parameters)
    wildcard, any_text, plain = text_quality.values()
    text = plain if plain >= 0 else any_text if any_text >= 0 else wildcard
    return json_quality > 0 and json_quality >= text


def _quality(parameters: list[bytes]) -> float:
    """The weight among parameters of a media range; 0 when it is malformed."""
    for parameter in parameters:
        if parameter.startswith(b"q="):
            match = _QUALITY.fullmatch(parameter)
            return float(match[1]) if match else 0.0
    return 1.0
