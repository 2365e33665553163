"""What a client reads when its request failed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from botproxy import errors
from botproxy.policy.refusals import render
from botproxy.reasons import REASONS

ID = "0123456789abcdef"


def kinds(base: type[errors.ProxyError] = errors.ProxyError) -> Iterator[type[errors.ProxyError]]:
    yield base
    for each in base.__subclasses__():
        yield from kinds(each)


TOLD = [kind for kind in kinds() if kind.status is not None]
UNTOLD = [kind for kind in kinds() if kind.status is None]


def rendered(error: errors.ProxyError, accept: bytes | None = None) -> tuple[int, dict[bytes, bytes], str]:
    status, fields, body = render(error, ID, accept)
    assert len({lower for lower, _, _ in fields}) == len(list(fields))
    return status, {name: value for _, name, value in fields}, body.decode("ascii")


@pytest.mark.parametrize("kind", TOLD)
def test_every_error_says_what_it_is_where_to_look_and_what_to_change(kind: type[errors.ProxyError]) -> None:
    status, fields, body = rendered(kind("a detail for the log"))
    assert status == kind.status
    assert status in REASONS
    assert fields[b"Content-Type"] == b"text/plain; charset=utf-8"
    assert fields[b"Cache-Control"] == b"no-store"
    assert kind.says in body
    assert ID in body
    assert kind.key is None or kind.key in body
    assert "a detail for the log" not in body
    assert body.count("\n") == 1
    assert body.endswith("\n")
    assert len(body) < 300


@pytest.mark.parametrize("kind", TOLD)
def test_every_error_says_the_same_in_json(kind: type[errors.ProxyError]) -> None:
    status, fields, body = rendered(kind("a detail for the log"), b"application/json")
    assert fields[b"Content-Type"] == b"application/json"
    answer = json.loads(body)["botproxy"]
    expected = {"status": status, "error": kind.code, "message": kind.says, "request_id": ID, "key": kind.key}
    assert answer == {key: value for key, value in expected.items() if value is not None}


@pytest.mark.parametrize("kind", UNTOLD)
def test_nobody_is_told_when_nobody_is_left(kind: type[errors.ProxyError]) -> None:
    with pytest.raises(ValueError, match=kind.code):
        render(kind(), ID, None)


def test_a_request_without_an_id_is_told_of_none() -> None:
    assert render(errors.BadRequest(), "", None)[2] == b"botproxy: 400: the request is not valid HTTP/1.1\n"
    assert "request_id" not in json.loads(render(errors.BadRequest(), "", b"application/json")[2])["botproxy"]


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (errors.ConnectFailed(), b"5"),
        (errors.WaitingRoomFull(retry_after=9), b"9"),
        (errors.RateLimited(retry_after=17), b"17"),
        (errors.RateLimited(), b"1"),
        (errors.BadResponse(), None),
        (errors.ResponseTimeout(), None),
        (errors.BadRequest(), None),
    ],
)
def test_retry_after_stands_where_trying_again_helps(error: errors.ProxyError, seconds: bytes | None) -> None:
    assert rendered(error)[1].get(b"Retry-After") == seconds


def test_a_405_names_methods_and_a_426_the_protocol() -> None:
    """RFC 9110 15.5.6 and 15.5.22, RFC 6455 4.4."""
    allow = rendered(errors.MethodNotAllowed())[1][b"Allow"].split(b", ")
    assert {b"GET", b"POST"} < set(allow)
    assert not {b"CONNECT", b"TRACE"} & set(allow)
    fields = rendered(errors.UpgradeRequired())[1]
    assert fields[b"Upgrade"] == b"websocket"
    assert fields[b"Connection"] == b"Upgrade"
    assert fields[b"Sec-WebSocket-Version"] == b"13"


@pytest.mark.parametrize(
    ("accept", "as_json"),
    [
        (None, False),
        (b"", False),
        (b"*/*", False),
        (b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        (b"application/json", True),
        (b"APPLICATION/JSON;charset=utf-8", True),
        (b"application/problem+json", True),
        (b"application/json, text/plain, */*", True),
        (b"text/plain, application/json;q=0.9", False),
        (b"text/*;q=0.2, application/json;q=0.3", True),
        (b"application/json;q=0.5, */*", False),
        (b"text/plain;q=0.1, */*, application/json;q=0.5", True),
        (b"application/json;q=0", False),
        (b"application/json;q=0.000", False),
        (b"application/json;q=2", False),
        (b"application/json;q=x", False),
        (b"application/json ; q=1.0", True),
        (b"text/json", False),
        (b"application/json" + b"," * 2000, False),
    ],
)
def test_json_is_for_those_who_ask_for_it(accept: bytes | None, as_json: bool) -> None:
    assert (rendered(errors.NotFound(), accept)[1][b"Content-Type"] == b"application/json") == as_json
