"""The PROXY protocol: demanded from those who are named, believed from nobody else."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.e2e.conftest import Start
from tests.harness import Bot, Proxied, free_port
from tests.wire import HelloFor, Wire, get

V1 = b"PROXY TCP4 203.0.113.7 127.0.0.1 40000 443\r\n"
V1_IPV6 = b"PROXY TCP6 2001:db8::7 ::1 40000 443\r\n"
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
TLV = b"\x04\x00\x03abc"


def v2(command: int, family: int, addresses: bytes) -> bytes:
    return SIGNATURE + bytes([0x20 | command, family]) + len(addresses).to_bytes(2, "big") + addresses


V2 = v2(
    1, 0x11, socket.inet_aton("203.0.113.7") + socket.inet_aton("127.0.0.1") + struct.pack("!HH", 40000, 443)
)
V2_IPV6 = v2(
    1,
    0x21,
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "::1")
    + struct.pack("!HH", 40000, 443)
    + TLV,
)


@pytest.fixture(scope="module")
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


@pytest.fixture(scope="module")
def front(start_once: Start, bot: Bot) -> Proxied:
    """Names 127.0.0.1 as a peer, not ::1; both reach the same bot."""
    port, plain = free_port(), free_port()
    return start_once(
        bot.url,
        listen=[f"[::1]:{port}", {"address": f"127.0.0.1:{port}", "proxy_protocol_from": ["127.0.0.1"]}],
        plain_listen=[{"address": f"127.0.0.1:{plain}", "proxy_protocol_from": ["127.0.0.0/8"]}],
        timeouts={"proxy_protocol": "700ms"},
    )


def port_of(front: Proxied) -> int:
    return int(front.config["listen"][0].rpartition(":")[2])


def plain_port_of(front: Proxied) -> int:
    return int(front.config["plain_listen"][0]["address"].rpartition(":")[2])


def shaken(sock: socket.socket, trust: ssl.SSLContext) -> Wire:
    return Wire(trust.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False))


@pytest.mark.parametrize(
    ("header", "address"),
    [(V1, "203.0.113.7"), (V1_IPV6, "2001:db8::7"), (V2, "203.0.113.7"), (V2_IPV6, "2001:db8::7")],
    ids=["v1", "v1 IPv6", "v2", "v2 IPv6 with TLV"],
)
def test_the_client_in_the_header_reaches_bot_and_log(
    front: Proxied, bot: Bot, trust: ssl.SSLContext, header: bytes, address: str
) -> None:
    since = len(front.access.lines)
    sock = front.tcp(port_of(front))
    sock.sendall(header)
    with shaken(sock, trust) as client:
        assert client.request(get("/", "X-Forwarded-For: 198.51.100.1")).status == 200
    assert bot.requests[-1].value("x-forwarded-for") == address
    assert bot.requests[-1].value("x-real-ip") == address
    front.wait_record(since, client=address, status=200)


def test_header_and_hello_may_come_in_one_segment_or_in_bytes(front: Proxied, trust: ssl.SSLContext) -> None:
    for header in (V1, V2, V2_IPV6):
        for step in (10_000, 1):
            hello = HelloFor(trust)
            data = header + hello.data
            with front.tcp(port_of(front)) as sock:
                for at in range(0, len(data), step):
                    sock.sendall(data[at : at + step])
                hello.finish(sock)
                assert b" 200 " in hello.exchange(sock, get())


def test_a_local_header_leaves_the_peer_as_it_is(front: Proxied, bot: Bot, trust: ssl.SSLContext) -> None:
    for header in (v2(0, 0, b""), b"PROXY UNKNOWN\r\n"):
        sock = front.tcp(port_of(front))
        sock.sendall(header)
        with shaken(sock, trust) as client:
            assert client.request(get()).status == 200
        assert bot.requests[-1].value("x-forwarded-for") == "127.0.0.1"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"PROXY TCP4 203.0.113.7 127.0.0.1 40000 443\n",
        b"PROXY TCP4 203.0.113.7 127.0.0.1 40000\r\n",
        b"PROXY TCP4 203.0.113.999 127.0.0.1 40000 443\r\n",
        b"PROXY TCP4 2001:db8::7 ::1 40000 443\r\n",
        b"PROXY TCP4 203.0.113.7 127.0.0.1 70000 443\r\n",
        b"PROXY TCP4 203.0.113.7 127.0.0.1 040000 443\r\n",
        b"PROXY  TCP4 203.0.113.7 127.0.0.1 40000 443\r\n",
        b"proxy TCP4 203.0.113.7 127.0.0.1 40000 443\r\n",
        b"PROXY TCP4 " + b"1" * 200 + b"\r\n",
        V2.replace(b"\x21\x11", b"\x31\x11", 1),
        v2(1, 0x11, b"\x01\x02"),
        v2(2, 0x11, V2[16:]),
    ],
    ids=[
        "none",
        "LF",
        "short",
        "address",
        "family",
        "port",
        "zero",
        "spaces",
        "case",
        "long",
        "version",
        "cut",
        "command",
    ],
)
def test_a_named_peer_without_a_good_header_is_refused(
    front: Proxied, bot: Bot, trust: ssl.SSLContext, header: bytes
) -> None:
    before = len(bot.requests)
    with front.tcp(port_of(front)) as sock:
        sock.sendall(header + HelloFor(trust).data)
        data, _ = Wire(sock).read_to_end()
    assert not data.startswith(b"\x16"), "it shook hands"
    assert len(bot.requests) == before


def test_a_named_peer_that_stays_silent_is_closed(front: Proxied) -> None:
    for sent in (b"", V1[:20], V2[:14]):
        with Wire(front.tcp(port_of(front))) as wire:
            wire.send(sent)
            assert wire.read_to_end()[0] == b""


def test_a_header_from_anybody_else_is_garbage(front: Proxied, bot: Bot, trust: ssl.SSLContext) -> None:
    before = len(bot.requests)
    for header in (V1, V2):
        with socket.create_connection(("::1", port_of(front)), timeout=10) as sock:
            sock.sendall(header + HelloFor(trust).data)
            data, _ = Wire(sock).read_to_end()
        assert not data.startswith(b"\x16"), "it shook hands"
    assert len(bot.requests) == before
    with shaken(socket.create_connection(("::1", port_of(front)), timeout=10), trust) as client:
        assert client.request(get()).status == 200
    assert bot.requests[-1].value("x-forwarded-for") == "::1"


def test_the_plain_listener_takes_headers_too(front: Proxied) -> None:
    since = len(front.access.lines)
    with Wire(front.tcp(plain_port_of(front))) as client:
        client.send(V1 + get())
        assert client.read_message().status == 308
    front.wait_record(since, client="203.0.113.7", status=308)
    with Wire(front.tcp(plain_port_of(front))) as client:
        client.send(get())
        assert client.read_to_end()[0] == b""


def test_clients_behind_a_peer_are_counted_one_by_one(
    start: Start, bot: Bot, trust: ssl.SSLContext, unused_port: int
) -> None:
    front = start(
        bot.url,
        listen=[{"address": f"127.0.0.1:{unused_port}", "proxy_protocol_from": ["127.0.0.1"]}],
        limits={"connections_per_address": 1},
    )

    with ExitStack() as stack:

        def connect(address: str) -> socket.socket:
            sock = stack.enter_context(front.tcp(unused_port))
            sock.sendall(f"PROXY TCP4 {address} 127.0.0.1 40000 443\r\n".encode())
            return sock

        for address in ("203.0.113.1", "203.0.113.2"):
            client = stack.enter_context(shaken(connect(address), trust))
            assert client.request(get()).status == 200
        another = connect("203.0.113.1")
        another.sendall(HelloFor(trust).data)
        assert not Wire(another).read_to_end()[0].startswith(b"\x16")
