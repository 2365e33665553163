"""Addresses, networks, URLs, names: the forms that are read and those that are not."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from botproxy.config.kinds import (
    Account,
    AdminSocket,
    FileName,
    HeaderName,
    HeaderValue,
    Host,
    RoutePath,
    UpstreamName,
    Workers,
)
from botproxy.config.units import Fault, Refused
from botproxy.config.values import (
    Target,
    endpoints,
    listen_address,
    network,
    parse_target,
    split_address,
    trusted_network,
)


def fault_of(read: Callable[[str], object], value: object) -> Fault:
    with pytest.raises(Refused) as caught:
        read(value)  # type: ignore[arg-type]
    return caught.value.faults[0]


def accepts(kind: object, value: object) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


# Listening addresses


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        (":443", "", 443),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("[::]:443", "::", 443),
        ("[::1]:65535", "::1", 65535),
        ("localhost:8443", "localhost", 8443),
        ("bot.example.com:443", "bot.example.com", 443),
    ],
)
def test_addresses_have_host_and_port(address: str, host: str, port: int) -> None:
    assert split_address(listen_address(address)) == (host, port)


@pytest.mark.parametrize("address", ["fd:3", "systemd"])
def test_sockets_may_be_inherited(address: str) -> None:
    assert listen_address(address) == address


@pytest.mark.parametrize(
    "value",
    [443, None, True, "", "443", ":", ":65536", ":４４３", "8000:8000", "1.2.3:443", "256.1.1.1:1", "::1:443",
     "[127.0.0.1]:443", "[::g]:443", "[]:443", "*:443", "a b:1", "http://x:1", ":443\n", "fd:",
     "fd:x", "-a:1"],
)  # fmt: skip
def test_anything_else_is_no_address(value: object) -> None:
    assert "an address like" in fault_of(listen_address, value).expected


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (443, 'write ":443"'),
        ("443", 'write ":443"'),
        ("8000:443", 'this is no port mapping; write the port alone: ":8000"'),
        ("localhost", 'add the port: "localhost:443"'),
        ("a b", None),
        (True, None),
    ],
)
def test_a_nearly_written_address_is_put_right(value: object, hint: str | None) -> None:
    assert fault_of(listen_address, value).hint == hint


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        (":443", ":443", True),
        (":443", "0.0.0.0:443", True),
        (":443", "[::]:443", True),
        ("localhost:443", "127.0.0.1:443", True),
        ("[::1]:443", "[0:0:0:0:0:0:0:1]:443", True),
        ("fd:3", "fd:3", True),
        ("systemd", "systemd", True),
        (":0", ":0", False),
        (":443", ":8443", False),
        ("fd:3", "fd:4", False),
        ("0.0.0.0:443", "[::]:443", False),
        (":443", "127.0.0.1:443", False),
    ],
)
def test_two_spellings_of_one_address_are_known(one: str, other: str, meet: bool) -> None:
    assert bool(endpoints(one) & endpoints(other)) is meet


# Networks


def test_networks_and_single_addresses_are_read() -> None:
    assert network("10.0.0.0/8") == ipaddress.ip_network("10.0.0.0/8")
    assert network("10.0.0.1") == ipaddress.ip_network("10.0.0.1/32")
    assert network("fd00::/8") == ipaddress.ip_network("fd00::/8")


@pytest.mark.parametrize(
    "value", [10, True, None, "", "10", "10.0.0.0/33", "host", "10.0.0.0/8/8", b"\x0a\x00\x00\x00"]
)
def test_anything_else_is_no_network(value: object) -> None:
    assert fault_of(network, value).hint is None


def test_bits_behind_the_prefix_are_refused_with_the_network_meant() -> None:
    assert fault_of(network, "10.1.2.3/8").hint == 'write "10.0.0.0/8"'


@pytest.mark.parametrize("everybody", ["0.0.0.0/0", "::/0"])
def test_nobody_can_trust_the_whole_internet(everybody: str) -> None:
    assert network(everybody).prefixlen == 0
    assert fault_of(trusted_network, everybody).found == "every address there is"


# Upstreams


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:8000", Target("http", "127.0.0.1", 8000)),
        ("http://localhost/", Target("http", "localhost", 80)),
        ("https://Bot.example.com.", Target("https", "bot.example.com", 443)),
        ("http://[::1]:8000", Target("http", "::1", 8000)),
        ("unix:/run/bot.sock", Target("unix", "", 0, "/run/bot.sock")),
    ],
)
def test_targets_are_read_from_urls(url: str, target: Target) -> None:
    assert parse_target(url) == target
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "8000", "ftp://x", "ws://x:1", "http://", "http://:8000", "http://x:", "http://x:0",
     "http://x:65536", "http://x:a", "http://x:1/path", "http://x?q", "http://x#f", "http://u:p@x:1",
     "http://[::1",
     "http://1.2.3", "http://a b", "http://x\n:1", "http://x:1\n", "http://é", "http://x:１",
     "unix:", "unix:run/x",
     "unix:/a b", "unix:/" + "x" * 107, "http://$HOST:1", "http://x:${PORT}"],
)  # fmt: skip
def test_anything_else_is_no_target(url: str) -> None:
    fault = fault_of(parse_target, url)
    assert '"http://host:port"' in fault.expected
    assert fault.found is None


def test_a_url_is_never_quoted_in_what_is_said_about_it() -> None:
    for url in (
        "http://user:hunter2@bot:1",
        "http://bot:1/hunter2",
        "hunter2",
        "hunter2://x",
        "unix:hunter2",
    ):
        assert "hunter2" not in repr(fault_of(parse_target, url))


@pytest.mark.parametrize(
    ("url", "listening", "loop"),
    [
        ("https://localhost:443", ":443", True),
        ("http://127.0.0.1", ":80", True),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://0.0.0.0:8000", "127.0.0.1:8000", True),
        ("http://127.0.0.5:8000", "0.0.0.0:8000", True),
        ("http://[::1]:8000", "[::]:8000", True),
        ("http://bot.internal:8000", "bot.internal:8000", True),
        ("http://127.0.0.1:8000", ":443", False),
        ("http://127.0.0.2:8000", "127.0.0.1:8000", False),
        ("http://127.0.0.1:8000", "[::1]:8000", False),
        ("http://192.0.2.1:443", ":443", False),
        ("unix:/run/x", "fd:3", False),
    ],
)
def test_a_target_that_is_ourselves_is_known(url: str, listening: str, loop: bool) -> None:
    assert bool(parse_target(url).endpoints() & endpoints(listening)) is loop


# Names


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Host, ["bot.example.com", "*.example.com", "Bot.Example.Com.", "localhost", "[::1]"],
         ["", "*", "a..b", "a.*.b", "bot.example.com:443", "https://x", "bücher.de",
          "\u212a.de", "-a.de", "a/b"]),
        (RoutePath, ["/", "/telegram", "/a/b/", "/a.b", "/.well-known/x", "/a:b@c!$&'()*+,;="],
         ["", "telegram", "//", "/a//b", "/.", "/..", "/a/../b", "/a/.", "/a?b", "/a#b", "/a%2fb",
          "/a\\b", "/é", "/a b", "/a\n"]),
        (UpstreamName, ["bot", "bot-2", "my.bot_1"], ["", "b d", "-b", ".b", "b\n", "é", "x" * 65]),
        (HeaderName, ["X-Foo", "Cache-Control"], ["", "X_Foo", "X Foo", "X:", "Content-Length",
         "TRANSFER-ENCODING",
         "Strict-Transport-Security", "Date", "X-\n"]),
        (HeaderValue, ["", "a", "max-age=1, b\tc"], [" a", "a ", "a\n", "a\r\nb", "é", "\x00"]),
        (Account, ["botproxy", "www-data", "_x"], ["", "root", "0", "1000", "a b", "a:b"]),
        (FileName, ["x.pem", "/etc/x.pem", "ä.pem"], ["", "a\nb", "a\x00b", "-----BEGIN CERTIFICATE-----"]),
        (AdminSocket, ["unix:/run/x.sock", "off", False], ["unix:x", "/x", "on", True, 5, "127.0.0.1:1"]),
        (Workers, ["auto", 1, 64], ["4", 0, 65, True, 1.0, "Auto", None]),
    ],
)  # fmt: skip
def test_names_have_their_form(kind: object, good: list[object], bad: list[object]) -> None:
    assert [value for value in good if not accepts(kind, value)] == []
    assert [value for value in bad if accepts(kind, value)] == []


def test_hosts_are_compared_in_lower_case_without_the_final_dot() -> None:
    assert TypeAdapter(Host).validate_python("Bot.Example.Com.") == "bot.example.com"


@given(st.text())
def test_no_text_breaks_a_check(text: str) -> None:
    for read in (listen_address, network, trusted_network, parse_target):
        with suppress(Refused):
            read(text)
