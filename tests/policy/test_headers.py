"""What a bot is told, what the world is told, and what neither ever sees."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botproxy.errors import BadRequest
from botproxy.policy.headers import TowardBot, TowardClient
from tests.policy.settings import PEER, PROXY, config, fields, head, parsed

OURS = [
    ("X-Forwarded-For", "203.0.113.7"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "bot.example"),
    ("X-Forwarded-Port", "443"),
    ("X-Real-IP", "203.0.113.7"),
    ("Forwarded", "for=203.0.113.7;host=bot.example;proto=https"),
    ("X-Request-ID", "0123456789abcdef"),
]
TRUSTED = {"trusted_proxies": ["10.0.0.0/8"]}


def toward_bot(
    *pairs: tuple[str, str], keys: dict[str, Any] | None = None, **changes: Any
) -> list[tuple[str, str]]:
    block = TowardBot(config(**(keys or {}))).block(
        head(*pairs, **changes), PEER, PEER.address, b"https", "0123456789abcdef"
    )
    return parsed(block)


# Toward the bot


def test_everything_else_passes_byte_for_byte_in_order() -> None:
    sent = [
        ("Content-Type", "application/json; charset=utf-8"),
        ("x-lower", "1"),
        ("X-Lower", "2"),
        ("Cookie", "a=b;  c=d"),
        ("X-Telegram-Bot-Api-Secret-Token", "s"),
        ("X-Latin", "caf\xe9"),
        ("X-Empty", ""),
        ("Traceparent", "00-1-2-01"),
        ("Tracestate", "x=y"),
        ("Authorization", "Bearer t"),
        ("Range", "bytes=0-9,1-10"),
        ("Max-Forwards", "X"),
    ]
    assert toward_bot(*sent) == [("Host", "bot.example"), *sent, *OURS]


def test_the_host_is_kept_as_the_client_wrote_it_and_stands_once_and_first() -> None:
    block = toward_bot(("A", "1"), authority=b"Bot.Example:8443", host="bot.example")
    assert block[0] == ("Host", "Bot.Example:8443")
    assert [name.lower() for name, _ in block].count("host") == 1
    assert ("X-Forwarded-Host", "Bot.Example:8443") in block
    assert ("Forwarded", 'for=203.0.113.7;host="Bot.Example:8443";proto=https') in block


def test_a_request_without_a_host_has_an_empty_one() -> None:
    """RFC 9112 3.2: HTTP/1.1 toward the bot needs the field."""
    block = dict(toward_bot(authority=b"", host="", minor=0))
    assert block["Host"] == ""
    assert "X-Forwarded-Host" not in block
    assert block["Forwarded"] == "for=203.0.113.7;proto=https"


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "Keep-Alive",
        "Proxy-Connection",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "HTTP2-Settings",
        "Proxy",
        "Content-Length",
        "Expect",
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Forwarded-Server",
        "X-Forwarded-Scheme",
        "X-Forwarded-Ssl",
        "X-Real-IP",
        "X-Client-IP",
        "X-Original-URL",
        "X-Original-Host",
        "X-Rewrite-URL",
        "X-Request-Start",
        "X-Request-ID",
    ],
)
@pytest.mark.parametrize("spelled", [str.lower, str.upper, str])
def test_what_only_we_say_is_not_taken_from_the_client(name: str, spelled: Any) -> None:
    assert toward_bot((spelled(name), "keep-alive"), ("A", "1")) == [
        ("Host", "bot.example"),
        ("A", "1"),
        *OURS,
    ]


@pytest.mark.parametrize(
    "name",
    ["Host", "Content-Length", "Transfer-Encoding", "Cookie", "Authorization", "Expect"]
    + [name for name, _ in OURS]
    + ["X-Forwarded-Prefix"],
)
def test_connection_may_not_nominate_what_is_not_its_senders(name: str) -> None:
    for value in (name, f"close, {name.lower()}", f"keep-alive ,\t{name.upper()} "):
        with pytest.raises(BadRequest):
            toward_bot(("Connection", value))


def test_what_connection_nominates_is_gone_wherever_it_stands() -> None:
    block = toward_bot(
        ("X-Private", "1"),
        ("A", "1"),
        ("Connection", "close, X-Private"),
        ("Connection", "B,,TE"),
        ("b", "2"),
    )
    assert block == [("Host", "bot.example"), ("A", "1"), *OURS]


def test_expect_passes_only_when_it_is_waited_for() -> None:
    assert ("Expect", "100-continue") in toward_bot(("Expect", "100-Continue"), expects_continue=True)
    assert "Expect" not in dict(toward_bot(("Expect", "100-continue")))


def test_a_websocket_handshake_asks_for_the_switch_and_nothing_else() -> None:
    sent = [("Sec-WebSocket-Key", "k"), ("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Protocol", "chat")]
    block = toward_bot(
        ("Connection", "keep-alive, Upgrade"), ("Upgrade", "websocket"), *sent, websocket_key=b"k"
    )
    assert block == [
        ("Host", "bot.example"),
        *sent,
        *OURS,
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "X_Forwarded_For",
        "x-forwarded_proto",
        "X_Real-IP",
        "X_Request_ID",
        "Content_Length",
        "transfer_encoding",
        "X_Original_URL",
        "KEEP_ALIVE",
        "HTTP2_Settings",
    ],
)
@pytest.mark.parametrize("policy", ["pass", "drop", "refuse"])
def test_a_name_that_reads_like_one_of_ours_is_always_refused(name: str, policy: str) -> None:
    with pytest.raises(BadRequest):
        toward_bot((name, "1"), keys={"headers": {"underscores": policy}})


def test_other_underscores_follow_the_configuration() -> None:
    assert ("api_key", "1") in toward_bot(("api_key", "1"))
    assert "api_key" not in dict(toward_bot(("api_key", "1"), keys={"headers": {"underscores": "drop"}}))
    with pytest.raises(BadRequest):
        toward_bot(("api_key", "1"), keys={"headers": {"underscores": "refuse"}})


def test_what_a_name_means_does_not_depend_on_how_many_were_seen_before() -> None:
    policy = TowardBot(config())
    flood = [(f"X-Random-{number}", "1") for number in range(3000)]
    policy.block(head(*flood), PEER, PEER.address, b"https", "id")
    block = policy.block(head(("X-Forwarded-Late", "1"), ("X-Late", "1")), PEER, PEER.address, b"https", "id")
    assert ("X-Late", "1") in parsed(block)
    assert "X-Forwarded-Late" not in dict(parsed(block))


def test_the_names_of_a_flood_are_not_remembered_for_ever() -> None:
    policy = TowardBot(config())

    def flood(first: int) -> None:
        for number in range(first, first + 200):
            for size in (20, 100):
                names = [(f"X-{number}-{each}", "1") for each in range(size)]
                policy.block(head(*names), PEER, "203.0.113.7", b"https", "id")

    flood(0)
    before = sys.getallocatedblocks()
    flood(200)
    assert sys.getallocatedblocks() - before < 2000


NAMES = st.one_of(
    st.from_regex(r"[A-Za-z0-9-]{1,20}", fullmatch=True),
    st.sampled_from(
        ["Connection", "Host", "Forwarded", "X-Forwarded-For", "TE", "Upgrade", "X-Real-Ip", "Cookie"]
    ),
)
VALUES = st.text(st.characters(codec="latin-1", categories=["L", "N", "P", "S"]), max_size=20)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=12))
def test_whatever_is_sent_ours_stands_exactly_once(pairs: list[tuple[str, str]]) -> None:
    try:
        block = toward_bot(*pairs)
    except BadRequest:
        return
    assert block[0] == ("Host", "bot.example")
    assert block[-len(OURS) :] == OURS
    names = [name.lower() for name, _ in block]
    for name in ["host", *(name.lower() for name, _ in OURS)]:
        assert names.count(name) == 1
    assert not {"connection", "upgrade", "te", "content-length", "transfer-encoding"} & set(names)
    rest = iter(pairs)
    assert all(pair in rest for pair in block[1 : -len(OURS)]), "in order, and nothing made up"


# Ids


def test_an_id_is_new_random_and_short() -> None:
    policy = TowardBot(config())
    made = {policy.request_id(PEER, fields(("X-Request-ID", "0123456789abcdef"))) for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"[0-9a-f]{16}", each) for each in made)


@pytest.mark.parametrize(
    ("given_ids", "kept"),
    [
        (["6ba7b810-9dad-11d1-80b4-00c04fd430c8"], True),
        (["a.b_c-D.9"], True),
        (["short"], False),
        (["a" * 65], False),
        (['quoted"quoted'], False),
        (["with space"], False),
        (["new\nline-x"], False),
        (["caf\xe9-caf\xe9"], False),
        (["first-one", "second-one"], False),
        ([], False),
    ],
)
def test_an_id_is_kept_from_a_trusted_proxy_when_it_is_harmless(given_ids: list[str], kept: bool) -> None:
    policy = TowardBot(config(**TRUSTED))
    sent = fields(*(("X-Request-ID", each) for each in given_ids))
    assert (policy.request_id(PROXY, sent) in given_ids) == kept
    assert policy.request_id(PEER, sent) not in given_ids


# Toward the client


def toward_client(
    *pairs: tuple[str, str],
    tls: bool = True,
    host: str = "bot.example",
    switching: bool = False,
    date: bytes = b"",
    **headers: Any,
) -> list[tuple[str, str]]:
    policy = TowardClient(config(headers=headers))
    block = parsed(policy.block(fields(*pairs), tls, host, lambda: date or b"any", switching))
    return [line for line in block if line != ("Date", "any")]


API = [("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer")]
HSTS = ("Strict-Transport-Security", "max-age=31536000")


def test_a_date_is_added_only_where_the_bot_gave_none() -> None:
    assert ("Date", "now") in toward_client(("A", "b"), date=b"now")
    for override in (False, True):
        answer = toward_client(("date", "then"), date=b"now", override=override)
        assert [value for name, value in answer if name.lower() == "date"] == ["then"]


def test_the_bots_fields_pass_and_ours_follow() -> None:
    sent = [
        ("date", "now"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("Content-Type", "x/y"),
        ("X", "\xe9"),
    ]
    assert toward_client(*sent) == [*sent, *API, HSTS]
    assert toward_client() == [*API, HSTS]
    assert toward_client(preset="none", tls=False) == []


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "Keep-Alive",
        "Proxy-Connection",
        "Proxy-Authenticate",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Content-Length",
        "Server",
        "X-Powered-By",
    ],
)
def test_what_belongs_to_the_bots_connection_or_names_its_software_is_removed(name: str) -> None:
    for spelled in (name, name.lower()):
        assert toward_client((spelled, "close"), ("A", "1"), override=True) == [("A", "1"), *API, HSTS]
        assert toward_client((spelled, "close"), ("A", "1")) == [("A", "1"), *API, HSTS]


def test_what_the_bot_nominates_is_removed_and_ours_are_not() -> None:
    block = toward_client(
        ("X-Secret", "1"),
        ("Referrer-Policy", "origin"),
        ("Connection", "x-secret, close, Referrer-Policy, Strict-Transport-Security"),
        ("A", "1"),
    )
    assert block == [("A", "1"), *API, HSTS]


@pytest.mark.parametrize("host", ["", "203.0.113.7", "[2001:db8::1]", "localhost", "bot.localhost", "127.1"])
def test_no_promise_is_made_for_addresses_and_localhost(host: str) -> None:
    assert toward_client(host=host) == API
    assert toward_client(host=host, hsts="off") == API


def test_no_promise_leaves_without_tls_not_even_the_bots_own() -> None:
    """RFC 6797 7.2: MUST NOT over non-secure transport."""
    assert toward_client(("strict-transport-security", "max-age=1"), tls=False) == API


@pytest.mark.parametrize(
    ("hsts", "value"),
    [
        ("on", "max-age=31536000"),
        ("off", "max-age=0"),
        ({"max_age": "1h"}, "max-age=3600"),
        ({"max_age": "365d", "include_subdomains": True}, "max-age=31536000; includeSubDomains"),
        (
            {"max_age": "730d", "include_subdomains": True, "preload": True},
            "max-age=63072000; includeSubDomains; preload",
        ),
    ],
)
def test_the_promise_is_what_the_configuration_says(hsts: object, value: str) -> None:
    assert toward_client(hsts=hsts) == [*API, ("Strict-Transport-Security", value)]


def test_the_bots_own_promise_stands_once() -> None:
    """RFC 6797 7.1: exactly one field."""
    sent = ("strict-transport-security", "max-age=60")
    assert toward_client(sent, ("A", "1"), ("Strict-Transport-Security", "max-age=1")) == [
        sent,
        ("A", "1"),
        *API,
    ]
    assert toward_client(sent, hsts="off") == [sent, *API]
    assert toward_client(sent, sent, override=True) == [*API, HSTS]


def test_what_the_bot_says_itself_wins_unless_overridden() -> None:
    sent = ("referrer-policy", "origin")
    assert toward_client(sent) == [sent, API[0], HSTS]
    assert toward_client(sent, override=True) == [*API, HSTS]
    both = [("Content-Security-Policy", "a"), ("Content-Security-Policy", "b")]
    block = toward_client(*both, preset="web")
    assert [pair for pair in block if pair[0] == "Content-Security-Policy"] == both


def test_the_web_preset_adds_rules_for_pages() -> None:
    block = dict(toward_client(preset="web"))
    assert block["Content-Security-Policy"] == "frame-ancestors 'self'"
    assert block["X-Frame-Options"] == "SAMEORIGIN"
    assert "camera=()" in block["Permissions-Policy"]
    assert set(dict(API)) < set(block)


def test_set_adds_to_the_preset_or_replaces_its_lines() -> None:
    block = toward_client(
        set={"X-Team": "bots", "referrer-policy": "same-origin", "Server": "ours"}, tls=False
    )
    assert block == [API[0], ("referrer-policy", "same-origin"), ("X-Team", "bots"), ("Server", "ours")]
    assert ("Server", "ours") in toward_client(("Server", "uvicorn"), set={"Server": "ours"})


def test_a_switch_of_protocols_says_so() -> None:
    sent = [("Sec-WebSocket-Accept", "x")]
    block = toward_client(("Upgrade", "websocket"), ("Connection", "Upgrade"), *sent, switching=True)
    assert block == [*sent, ("Connection", "Upgrade"), ("Upgrade", "websocket"), *API, HSTS]


RESPONSE_NAMES = st.one_of(
    st.from_regex(r"[A-Za-z0-9-]{1,20}", fullmatch=True),
    st.sampled_from(
        ["Connection", "Server", "Strict-Transport-Security", "Referrer-Policy", "X-Frame-Options"]
    ),
)


@given(st.lists(st.tuples(RESPONSE_NAMES, VALUES), max_size=12), st.booleans(), st.booleans())
def test_whatever_the_bot_sends_each_of_ours_stands(
    pairs: list[tuple[str, str]], override: bool, tls: bool
) -> None:
    names = [name.lower() for name, _ in toward_client(*pairs, override=override, tls=tls, preset="web")]
    assert names.count("strict-transport-security") == int(tls)
    for name in ("x-content-type-options", "referrer-policy", "x-frame-options", "permissions-policy"):
        assert names.count(name) >= 1
        assert names.count(name) == 1 or not override
    assert not {"connection", "server", "content-length", "transfer-encoding"} & set(names)
