"""Who the client is, behind proxies that are believed and others that are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botproxy.model import Peer
from botproxy.policy.forwarded import client_address, lines
from botproxy.policy.headers import TowardBot
from tests.policy.settings import PEER, PROXY, config, fields, head, parsed

TRUSTED = config(trusted_proxies=["10.0.0.0/8", "192.0.2.1", "2001:db8:1::/48"])


def client(*values: str, peer: Peer = PROXY) -> str:
    return client_address(
        peer, fields(*(("X-Forwarded-For", value) for value in values)), TRUSTED.trusted_proxies
    )


def told(*pairs: tuple[str, str], peer: Peer = PROXY) -> dict[str, str]:
    asked = head(*pairs)
    address = client_address(peer, asked.fields, TRUSTED.trusted_proxies)
    return dict(parsed(TowardBot(TRUSTED).block(asked, peer, address, b"https", "id")))


def test_a_peer_that_is_not_trusted_is_the_client_whatever_it_says() -> None:
    assert client("198.51.100.9", peer=PEER) == "203.0.113.7"


@pytest.mark.parametrize(
    ("values", "address"),
    [
        ([], "10.0.0.1"),
        (["198.51.100.9"], "198.51.100.9"),
        (["6.6.6.6, 198.51.100.9"], "198.51.100.9"),
        (["6.6.6.6, 198.51.100.9, 10.0.0.7,192.0.2.1"], "198.51.100.9"),
        (["6.6.6.6", "198.51.100.9 ", "10.0.0.7"], "198.51.100.9"),
        (["10.0.0.9, 10.0.0.7"], "10.0.0.9"),
        (["198.51.100.9:4711"], "198.51.100.9"),
        (["[2001:db8::9]:4711"], "2001:db8::9"),
        (["[2001:DB8::0:9]"], "2001:db8::9"),
        (["2001:db8::9, 2001:db8:1::5"], "2001:db8::9"),
        (["::ffff:198.51.100.9"], "198.51.100.9"),
        (["198.51.100.9, ::ffff:10.0.0.7"], "198.51.100.9"),
        (["6.6.6.6, unknown"], "10.0.0.1"),
        (["6.6.6.6, unknown, 10.0.0.7"], "10.0.0.7"),
        (["6.6.6.6, , 10.0.0.7"], "10.0.0.7"),
        (["198.51.100.999"], "10.0.0.1"),
        (["198.51.100.09"], "10.0.0.1"),
        (["198.51.100.9x"], "10.0.0.1"),
        (["198.51.100.9:port"], "10.0.0.1"),
        (["fe80::1%eth0"], "10.0.0.1"),
        (["[198.51.100.9]"], "10.0.0.1"),
        (["1\r\n2"], "10.0.0.1"),
        (["\xb2.1.1.1"], "10.0.0.1"),
        ([""], "10.0.0.1"),
    ],
)
def test_behind_trusted_proxies_it_is_the_right_most_other_address(values: list[str], address: str) -> None:
    assert client(*values) == address


def test_a_very_long_chain_is_walked_for_a_few_steps_only() -> None:
    assert client(", ".join(["198.51.100.9", *["10.0.0.7"] * 5000])) == "10.0.0.7"


CLIENTS = st.ip_addresses().filter(
    lambda address: (
        not any(address in network for network in TRUSTED.trusted_proxies)
        and getattr(address, "ipv4_mapped", None) is None
        and getattr(address, "scope_id", None) is None
    )
)
PROXIES = st.lists(st.sampled_from(["10.0.0.7", "10.200.0.1", "192.0.2.1", "2001:db8:1::5"]), max_size=5)
LIES = st.lists(st.sampled_from(["6.6.6.6", "10.0.0.9", "unknown", "", "\xff", "::1", "x" * 50]), max_size=5)


@given(LIES, CLIENTS, PROXIES, st.integers(0, 8))
def test_what_a_client_puts_in_front_changes_nothing(
    lies: list[str], address: object, proxies: list[str], cut: int
) -> None:
    entries = [*lies, str(address), *proxies]
    values = [", ".join(part) for part in (entries[:cut], entries[cut:]) if part]
    assert client(*values) == str(address)
    block = told(*(("X-Forwarded-For", value) for value in values))
    assert block["X-Forwarded-For"] == ", ".join([str(address), *proxies, "10.0.0.1"])
    assert block["X-Real-IP"] == str(address)


def test_the_word_of_a_trusted_proxy_is_kept() -> None:
    block = told(
        ("X-Forwarded-For", "6.6.6.6, 198.51.100.9"),
        ("X-Forwarded-Proto", "HTTP"),
        ("X-Forwarded-Host", "www.example:8443"),
        ("X-Forwarded-Port", "8443"),
    )
    assert block["X-Forwarded-For"] == "198.51.100.9, 10.0.0.1"
    assert block["X-Forwarded-Proto"] == "http"
    assert block["X-Forwarded-Host"] == "www.example:8443"
    assert block["X-Forwarded-Port"] == "8443"
    assert block["Forwarded"] == 'for=198.51.100.9;host="www.example:8443";proto=http, for=10.0.0.1'
    assert block["Host"] == "bot.example"


@pytest.mark.parametrize(
    ("name", "values", "ours"),
    [
        ("X-Forwarded-Proto", ["gopher"], "https"),
        ("X-Forwarded-Proto", ["http, https"], "https"),
        ("X-Forwarded-Proto", ["http", "http"], "https"),
        ("X-Forwarded-Host", ["evil/path"], "bot.example"),
        ("X-Forwarded-Host", ["a, b"], "bot.example"),
        ("X-Forwarded-Port", ["0x1"], "443"),
        ("X-Forwarded-Port", [""], "443"),
    ],
)
def test_a_word_that_makes_no_sense_is_ours(name: str, values: list[str], ours: str) -> None:
    assert told(*((name, value) for value in values))[name] == ours


def test_a_client_that_is_not_trusted_is_not_asked() -> None:
    block = told(
        ("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-Proto", "http"), ("X-Forwarded-Host", "evil"), peer=PEER
    )
    assert "6.6.6.6" not in str(block)
    assert "evil" not in str(block)
    assert block["X-Forwarded-Proto"] == "https"


def test_forwarded_quotes_what_is_no_token() -> None:
    """RFC 7239 section 6: an IPv6 address stands in brackets and quotes."""
    block = parsed(lines("2001:db8::9", b'a"b\\c', 443, b"https") + b"\r\n")
    assert dict(block)["Forwarded"] == r'for="[2001:db8::9]";host="a\"b\\c";proto=https'


@pytest.mark.parametrize(
    ("authority", "port"),
    [
        (b"bot.example", b"443"),
        (b"bot.example:8443", b"8443"),
        (b"[2001:db8::1]", b"443"),
        (b"[2001:db8::1]:8443", b"8443"),
        (b"", b"9443"),
    ],
)
def test_the_port_is_the_one_the_client_knows_and_not_the_container_s(authority: bytes, port: bytes) -> None:
    assert b"X-Forwarded-Port: " + port + b"\r\n" in lines("192.0.2.1", authority, 9443, b"https")
