"""The header of a load balancer, strictly."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botproxy.net.proxy_protocol import LIMIT, Header, ProxyProtocolError, parse

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(content: bytes, *, kind: int = 0x11, command: int = 0x21, length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    return SIGNATURE + bytes([command, kind]) + size.to_bytes(2, "big") + content


V4 = IPv4Address("203.0.113.7").packed + IPv4Address("10.0.0.1").packed + b"\x30\x39\x01\xbb"
V6 = IPv6Address("2001:db8::7").packed + IPv6Address("2001:db8::1").packed + b"\x30\x39\x01\xbb"
MAPPED = IPv6Address("::ffff:203.0.113.7").packed + IPv6Address("::1").packed + b"\x30\x39\x01\xbb"
TLV = b"\x03\x00\x04\x01\x02\x03\x04"

GOOD = [
    (b"PROXY TCP4 203.0.113.7 10.0.0.1 12345 443\r\n", ("203.0.113.7", 12345)),
    (b"PROXY TCP6 2001:db8::7 ::1 12345 443\r\n", ("2001:db8::7", 12345)),
    (b"PROXY TCP6 ::ffff:203.0.113.7 ::1 12345 443\r\n", ("203.0.113.7", 12345)),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::1 ::1 1 2\r\n", None),
    (v2(V4), ("203.0.113.7", 12345)),
    (v2(V4 + TLV), ("203.0.113.7", 12345)),
    (v2(V6, kind=0x21), ("2001:db8::7", 12345)),
    (v2(MAPPED, kind=0x21), ("203.0.113.7", 12345)),
    (v2(b"", command=0x20, kind=0), None),
    (v2(V4, command=0x20), None),
    (v2(b"anything", kind=0), None),
    (v2(bytes(216) + TLV, kind=0x31), None),
]


@pytest.mark.parametrize(("header", "source"), GOOD)
def test_a_header_names_the_client_and_its_own_length(header: bytes, source: tuple[str, int] | None) -> None:
    assert parse(header + b"\x16\x03\x01") == Header(len(header), source)


@pytest.mark.parametrize(("header", "source"), GOOD)
def test_every_cut_is_incomplete_and_never_wrong(header: bytes, source: tuple[str, int] | None) -> None:
    for size in range(len(header)):
        assert parse(header[:size]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
        b"PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n",
        b"PROXY TCP4 1.1.1.01 2.2.2.2 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n",
        b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n",
        b"PROXY UNKNOWN" + b" " * 100 + b"\r\n",
        b"PROXY UNKNOWN \x00\r\n",
        v2(V4, command=0x11),
        v2(V4, command=0x22),
        v2(V4, kind=0x12),
        v2(V4, kind=0x31),
        v2(V4[:-1]),
        v2(V4, kind=0x21),
        v2(V4 + TLV[:-1]),
        v2(V4 + b"\x03"),
        v2(V4 + b"\x03\x00\x05\x01"),
        v2(b"", length=LIMIT),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ProxyProtocolError):
        parse(data)


@given(st.binary(max_size=120))
def test_no_bytes_fail_in_another_way(data: bytes) -> None:
    for prefix in (b"", b"PROXY ", SIGNATURE):
        try:
            header = parse(prefix + data)
        except ProxyProtocolError:
            continue
        assert header is None or header.length <= len(prefix + data)


@given(st.ip_addresses(v=4), st.integers(0, 65535))
def test_what_a_balancer_writes_is_read_back(address: IPv4Address, port: int) -> None:
    line = f"PROXY TCP4 {address} 10.0.0.1 {port} 443\r\n".encode()
    binary = v2(address.packed + V4[4:8] + port.to_bytes(2, "big") + b"\x01\xbb")
    for header in (line, binary):
        parsed = parse(header)
        assert parsed is not None
        assert parsed.source == (str(address), port)
