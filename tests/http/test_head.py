"""What a head means, and what is refused."""

from __future__ import annotations

import sys

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from botproxy import errors
from botproxy import fields as fields_module
from botproxy.fields import Fields
from botproxy.http import head as module
from botproxy.http.head import (
    FAMILIAR,
    OFTEN,
    HeadLimits,
    parse_host,
    parse_request,
    parse_response,
    reject_early,
)

LIMITS = HeadLimits(head=16 * 1024, fields=100, request_line=8 * 1024)


def request(*lines: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: bot.example") -> bytes:
    return b"\r\n".join([line, *([host] if host else []), *lines, b"", b""])


def test_what_connection_says_at_length_is_not_remembered() -> None:
    def parse(number: int) -> None:
        options = b",".join(b"x%d-%d" % (number, each) for each in range(100))
        assert parse_request(request(b"Connection: " + options), LIMITS).keep_alive

    parse(0)
    before = sys.getallocatedblocks()
    for number in range(300):
        parse(number)
    assert sys.getallocatedblocks() - before < 1000


def test_a_plain_head_is_read() -> None:
    head = parse_request(request(b"X-A:  b \t", b"content-length: 5", line=b"POST /a?b=c HTTP/1.1"), LIMITS)
    assert (head.method, head.target, head.host) == (b"POST", b"/a?b=c", "bot.example")
    assert list(head.fields)[1] == (b"x-a", b"X-A", b"b")
    assert head.content_length == 5
    assert head.keep_alive


def test_names_keep_their_spelling_and_values_their_bytes() -> None:
    head = parse_request(request(b"X-SpElLiNg: caf\xe9 \xff"), LIMITS)
    assert list(head.fields)[-1] == (b"x-spelling", b"X-SpElLiNg", b"caf\xe9 \xff")


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        (b"/a/../b/%2e%2e/c//d;x=1?q=%2F", b"/a/../b/%2e%2e/c//d;x=1?q=%2F"),
        (b"//evil.example/x", b"//evil.example/x"),
        (b"http://bot.example", b"/"),
        (b"HTTP://BOT.example/x?y", b"/x?y"),
        (b"https://bot.example?x", b"/?x"),
    ],
)
def test_the_target_reaches_the_bot_in_origin_form_byte_for_byte(target: bytes, seen: bytes) -> None:
    assert parse_request(request(line=b"GET " + target + b" HTTP/1.1"), LIMITS).target == seen


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (request(line=b"CONNECT a:443 HTTP/1.1"), errors.MethodNotAllowed),
        (request(line=b"TRACE / HTTP/1.1"), errors.MethodNotAllowed),
        (request(line=b"get / HTTP/1.1"), errors.BadRequest),
        (request(line=b"A" * 33 + b" / HTTP/1.1"), errors.BadRequest),
        (request(line=b"GET / HTTP/1.2"), errors.VersionNotSupported),
        (request(line=b"PRI * HTTP/2.0"), errors.VersionNotSupported),
        (request(line=b"GET / http/1.1"), errors.BadRequest),
        (request(line=b"GET /a#b HTTP/1.1"), errors.BadRequest),
        (request(line=b"GET /a\\b HTTP/1.1"), errors.BadRequest),
        (request(line=b"GET * HTTP/1.1"), errors.BadRequest),
        (request(line=b"GET http://evil.example/ HTTP/1.1"), errors.BadRequest),
        (request(line=b"GET http://u@bot.example/ HTTP/1.1"), errors.BadRequest),
        (request(line=b"GET /" + b"a" * 9000 + b" HTTP/1.1"), errors.RequestLineTooLong),
        (request(host=b""), errors.BadRequest),
        (request(b"Host: bot.example"), errors.BadRequest),
        (request(b"Content-Length: 5", b"Content-Length: 5"), errors.BadRequest),
        (request(b"Content-Length: 05"), errors.BadRequest),
        (request(b"Content-Length: 5", b"Transfer-Encoding: chunked"), errors.BadRequest),
        (request(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0"), errors.BadRequest),
        (request(b"Transfer-Encoding: gzip"), errors.NotImplementedCoding),
        (request(b"Transfer-Encoding: gzip, chunked"), errors.NotImplementedCoding),
        (request(b"X T: a"), errors.BadRequest),
        (request(b"X-T : a"), errors.BadRequest),
        (request(b"X.T: a"), errors.BadRequest),
        (request(b"X-T: a\r b"), errors.BadRequest),
        (request(b"X-T: a\0b"), errors.BadRequest),
        (request(b"X-T: a", b" folded"), errors.BadRequest),
        (request(*[b"X: a"] * 100), errors.HeadTooLarge),
        (request(b"Expect: 200-ok"), errors.ExpectationFailed),
        (request(b"Expect: 100-continue", b"Expect: 100-continue"), errors.ExpectationFailed),
    ],
)
def test_ambiguity_is_refused(raw: bytes, error: type[errors.ProxyError]) -> None:
    with pytest.raises(error):
        parse_request(raw, LIMITS)


@pytest.mark.parametrize("name", [b"X_Custom", b"X_Forwarded_For"])
def test_underscores_are_left_to_the_header_policy(name: bytes) -> None:
    assert list(parse_request(request(name + b": a"), LIMITS).fields)[-1][1] == name


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (b"BOT.Example.:443", "bot.example"),
        (b"127.0.0.1:8443", "127.0.0.1"),
        (b"[2001:DB8::1]:443", "[2001:db8::1]"),
        (b"my_bot", "my_bot"),
    ],
)
def test_hosts_are_normalised_for_routing(authority: bytes, host: str) -> None:
    assert parse_host(authority) == host


@pytest.mark.parametrize(
    "authority",
    [
        b"",
        b"a b",
        b"a,b",
        b"u@a",
        b"a/b",
        b"a:0",
        b"a:65536",
        b"a:8x",
        b"a:",
        b"a..b",
        b".a",
        b"[::1",
        b"[1.2]",
        b"<a>",
        b"a" * 300,
    ],
)
def test_other_hosts_are_refused(authority: bytes) -> None:
    with pytest.raises(errors.BadRequest):
        parse_host(authority)


@pytest.mark.parametrize(
    ("minor", "connection", "keeps"),
    [
        (b"1", None, True),
        (b"1", b"close", False),
        (b"1", b"foo, CLOSE", False),
        (b"0", None, False),
        (b"0", b"Keep-Alive", True),
    ],
)
def test_persistence_follows_version_and_options(minor: bytes, connection: bytes | None, keeps: bool) -> None:
    fields = [b"Connection: " + connection] if connection else []
    assert parse_request(request(*fields, line=b"GET / HTTP/1." + minor), LIMITS).keep_alive is keeps


KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = (b"Connection: keep-alive, Upgrade", b"Upgrade: WebSocket")


def test_a_websocket_handshake_is_recognised() -> None:
    raw = request(*UPGRADE, KEY, b"Sec-WebSocket-Version: 13")
    assert parse_request(raw, LIMITS).websocket_key == b"dGhlIHNhbXBsZSBub25jZQ=="


@pytest.mark.parametrize(
    ("lines", "line", "error"),
    [
        ((*UPGRADE, KEY, b"Sec-WebSocket-Version: 99"), b"GET / HTTP/1.1", errors.UpgradeRequired),
        ((*UPGRADE, b"Sec-WebSocket-Version: 13"), b"GET / HTTP/1.1", errors.BadRequest),
        ((*UPGRADE, KEY, KEY, b"Sec-WebSocket-Version: 13"), b"GET / HTTP/1.1", errors.BadRequest),
        ((*UPGRADE, KEY, b"Sec-WebSocket-Version: 13"), b"POST / HTTP/1.1", errors.BadRequest),
        (
            (*UPGRADE, KEY, b"Sec-WebSocket-Version: 13", b"Content-Length: 1"),
            b"GET / HTTP/1.1",
            errors.BadRequest,
        ),
        ((b"Connection: upgrade", b"Upgrade: websocket, h2c"), b"GET / HTTP/1.1", errors.BadRequest),
    ],
)
def test_other_websocket_handshakes_are_refused(
    lines: tuple[bytes, ...], line: bytes, error: type[errors.ProxyError]
) -> None:
    with pytest.raises(error):
        parse_request(request(*lines, line=line), LIMITS)


def test_other_upgrades_are_ordinary_requests() -> None:
    assert parse_request(request(b"Connection: Upgrade", b"Upgrade: h2c"), LIMITS).websocket_key is None


def test_an_incomplete_head_is_refused_as_soon_as_nothing_can_save_it() -> None:
    for part in (
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"EHLO x\r\n",
        b"GET / HTTP/1.1\r\nX: a\rb",
    ):
        with pytest.raises(errors.BadRequest):
            reject_early(part, 0, LIMITS)
    with pytest.raises(errors.RequestLineTooLong):
        reject_early(b"G" * 9000, 0, LIMITS)
    with pytest.raises(errors.HeadTooLarge):
        reject_early(request()[:-2] + b"X: " + b"a" * 17000, 0, LIMITS)


def test_a_good_head_is_never_refused_early_however_it_arrives() -> None:
    whole = request(b"X-T: a")
    for size in range(len(whole)):
        for checked in range(size + 1):
            reject_early(whole[:size], checked, LIMITS)


# The scanner and h11

_targets = st.sampled_from(
    [b"/", b"/a?b", b"*", b"//x", b"/%00", b"/{}|^", b"http://bot.example/", b"a", b""]
)
_methods = st.sampled_from([b"GET", b"POST", b"OPTIONS", b"M-SEARCH", b"get", b"FOO"])
_names = st.sampled_from(
    [b"X-A", b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"X_B", b"", b"X Y"]
)
_values = st.one_of(
    st.sampled_from(
        [b"chunked", b"5", b"05", b"close", b"bot.example", b"100-continue", b"a, b", b"\t x \t"]
    ),
    st.binary(max_size=6),
)
_seps = st.sampled_from([b": ", b":", b":\t", b" : "])
_ends = st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r"])
_line = st.tuples(_names, _seps, _values, _ends).map(b"".join)


@given(_methods, _targets, st.sampled_from([b"1.0", b"1.1", b"1.2"]), st.lists(_line, max_size=5))
def test_whatever_the_scanner_accepts_h11_accepts_with_the_same_meaning(
    method: bytes, target: bytes, version: bytes, lines: list[bytes]
) -> None:
    raw = b"%b %b HTTP/%b\r\nHost: bot.example\r\n%b\r\n" % (method, target, version, b"".join(lines))
    if module._REQUEST.fullmatch(raw) is None and module._LOOSE_REQUEST.fullmatch(raw) is None:
        return
    try:
        ours = parse_request(raw, LIMITS)
    except errors.ClientError:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    theirs = connection.next_event()
    assert isinstance(theirs, h11.Request)
    assert (ours.method, ours.target) == (theirs.method, theirs.target)
    assert b"1.%d" % ours.minor == theirs.http_version
    assert [(name, value) for _, name, value in ours.fields] == theirs.headers.raw_items()
    unusual = module._parse_unusual_request(raw, LIMITS)
    assert unusual == ours


def response(*lines: bytes, line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([line, *lines, b"", b""])


# Familiar shapes


@pytest.fixture
def unfamiliar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is familiar yet, and as much as a test wants may become so."""
    monkeypatch.setattr(module, "_familiar_requests", module._Familiar(module._START))
    monkeypatch.setattr(module, "_familiar_responses", module._Familiar(module._STATUS))
    monkeypatch.setattr(fields_module, "_kept", {})
    fields_module._remembered.cache_clear()
    module._recent_requests.clear()
    module._recent_responses.clear()


@given(_methods, _targets, st.lists(st.tuples(_names, _values), max_size=5), st.data())
def test_a_familiar_shape_changes_no_meaning(
    method: bytes, target: bytes, pairs: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    """The scanner made for a shape is asked of heads that are of this shape, nearly so, and not at all."""
    lines = [name + b": " + value + b"\r\n" for name, value in pairs]
    at = data.draw(st.integers(0, len(lines)))
    lines[at : at + data.draw(st.integers(0, 1))] = data.draw(st.lists(_line, max_size=1))
    end = b"".join(lines) + b"\r\n"
    shape = Fields.of((b"Host", b"x"), *pairs).shape
    familiar = module._Familiar(module._START)
    familiar.learn(shape)
    raw = b"%b %b HTTP/1.1\r\nHost: bot.example\r\n%b" % (method, target, end)
    match = familiar.match(raw, shape)
    strict = module._REQUEST.fullmatch(raw)
    if match is not None:
        assert strict is not None
        *start, block = strict.groups()
        fields = Fields.scanned(block, {})
        assert (start, fields.shape.names) == ([*match.groups()[:3]], shape.names)
        assert [*match.groups()[3:]] == fields.lines
    elif strict is not None:
        assert shape.names != Fields.scanned(strict[4], {}).shape.names or not shape.familiar
    responses = module._Familiar(module._STATUS)
    responses.learn(shape)
    raw = b"HTTP/1.1 200 OK\r\nHost: bot.example\r\n" + end
    if (match := responses.match(raw, shape)) is not None:
        strict = module._RESPONSE.fullmatch(raw)
        assert strict is not None
        assert [*match.groups()[2:]] == Fields.scanned(strict[3], {}).lines


@pytest.mark.usefixtures("unfamiliar")
def test_a_shape_that_comes_often_becomes_familiar_and_means_the_same() -> None:
    raws = [request(b"X-Often: %d" % number, b"Content-Length: %d" % number) for number in range(OFTEN + 2)]
    heads = [parse_request(raw, LIMITS) for raw in raws]
    shape = heads[0].fields.shape
    assert shape.familiar
    assert [parse_request(raw, LIMITS, shape) for raw in raws] == heads
    other = request(b"X-Often: 1", b"Content-Length: 1", b"Content-Length: 1")
    with pytest.raises(errors.BadRequest):
        parse_request(other, LIMITS, shape)
    said = [parse_response(response(b"X-Often: %d" % number, b"X-B: b")) for number in range(OFTEN)]
    assert said[0].fields.shape.familiar
    assert parse_response(response(b"X-Often: 7", b"X-B: b"), said[0].fields.shape) == said[7]


@pytest.mark.usefixtures("unfamiliar")
@pytest.mark.parametrize("untidy", [1, OFTEN, OFTEN + 1])
def test_a_shape_becomes_familiar_whoever_writes_it_untidily_now_and_then(untidy: int) -> None:
    for number in range(1, 2 * OFTEN + 1):
        raw = request(b"X-Untidy:  1" if number == untidy else b"X-Untidy: 1")
        shape = parse_request(raw, LIMITS).fields.shape
    assert shape.familiar


@pytest.mark.usefixtures("unfamiliar")
def test_limits_hold_for_a_familiar_shape_too() -> None:
    shape = parse_request(request(b"X-Often: 1"), LIMITS).fields.shape
    module._familiar_requests.learn(shape)
    long = request(b"X-Often: 1", line=b"GET /" + b"a" * LIMITS.request_line + b" HTTP/1.1")
    with pytest.raises(errors.RequestLineTooLong):
        parse_request(long, LIMITS, shape)
    with pytest.raises(errors.HeadTooLarge):
        parse_request(request(b"X-Often: 1"), HeadLimits(1024, 1, 1024), shape)
    with pytest.raises(errors.MethodNotAllowed):
        parse_request(request(b"X-Often: 1", line=b"TRACE / HTTP/1.1"), LIMITS, shape)


@pytest.mark.usefixtures("unfamiliar")
def test_only_so_many_shapes_become_familiar() -> None:
    shapes = [Fields.of((b"X-%d" % number, b"")).shape for number in range(FAMILIAR + 1)]
    for shape in shapes:
        module._familiar_requests.learn(shape)
    assert [shape.familiar for shape in shapes] == [True] * FAMILIAR + [False]


@pytest.mark.usefixtures("unfamiliar")
def test_a_familiar_shape_is_not_crowded_out_by_strangers() -> None:
    """Else it would be learned again and again, until nothing more may be."""
    popular = [parse_request(request(b"X-Often: 1"), LIMITS) for _ in range(OFTEN)][-1].fields.shape
    for number in range(300):
        parse_request(request(b"X-%d: 1" % number), LIMITS)
    assert parse_request(request(b"X-Often: 1"), LIMITS).fields.shape is popular
    assert popular.familiar


@pytest.mark.usefixtures("unfamiliar")
@pytest.mark.parametrize("names", [[b"X-%d" % n for n in range(25)], [b"X-" + b"n" * 600]])
def test_a_shape_that_takes_long_to_learn_is_not_learned(names: list[bytes]) -> None:
    shape = Fields.of(*((name, b"") for name in names)).shape
    module._familiar_requests.learn(shape)
    assert not shape.familiar


def test_a_response_head_is_read() -> None:
    head = parse_response(response(b"Content-Length: 5", line=b"HTTP/1.1 404"))
    assert (head.status, head.content_length, head.keep_alive) == (404, 5, True)


@pytest.mark.parametrize(
    "raw",
    [
        response(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        response(b"Content-Length: 5", b"Content-Length: 5"),
        response(b"Content-Length: +5"),
        response(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        response(b"Transfer-Encoding: gzip, chunked"),
        response(b"Transfer-Encoding: chunked", line=b"HTTP/1.0 200 OK"),
        response(line=b"HTTP/2.0 200 OK"),
        response(line=b"HTTP/1.1 20 OK"),
        response(line=b"HTTP/1.1 099 OK"),
        response(b"X: a\rb"),
        response(b"X : a"),
        response(b"NoColon"),
        response(*[b"a: b"] * 201),
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n\r\n\r\n",
    ],
)
def test_a_response_that_could_be_misread_is_refused(raw: bytes) -> None:
    with pytest.raises(errors.BadResponse):
        parse_response(raw)


def test_a_response_of_http_1_0_is_never_reused() -> None:
    assert not parse_response(response(b"Connection: keep-alive", line=b"HTTP/1.0 200 OK")).keep_alive
