"""The PROXY protocol header, versions 1 and 2 (haproxy.org, proxy-protocol.txt).

Decides how long the header at the beginning of a connection is and which client it
names. Strict: what is not exactly a header is refused, for the address in it is
believed. Whether a header may come at all, and who is believed, is decided by the
listener's configuration. Pure: bytes in, values out.

Before: `server.reception`, which takes exactly `length` bytes off the socket.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

_V1_LIMIT = 107
_V1_PREFIX = b"PROXY "
_PORT = r"(0|[1-9][0-9]{0,4})"
_V1 = re.compile(
    rf"PROXY (?:TCP4 ([0-9.]+) ([0-9.]+)|TCP6 ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+)) {_PORT} {_PORT}\r\n"
)
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [ -~]*)?\r\n")

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED = 16
_V2_PAYLOAD_LIMIT = 4096
"""Bytes behind the fixed part; TLVs of real senders take a few hundred."""
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31

LIMIT = _V2_FIXED + _V2_PAYLOAD_LIMIT
"""Bytes that any header fits into."""

Endpoint = tuple[str, int]
"""Address as text (IPv4-mapped IPv6 as IPv4) and port."""


class ProxyProtocolError(ValueError):
    """Not a PROXY header, or not a proper one. The message is a phrase of ours."""


@dataclass(frozen=True, slots=True)
class Header:
    """A complete header."""

    length: int
    """Bytes that it takes."""
    source: Endpoint | None = None
    """The client; None: the connection stands for itself (LOCAL, UNKNOWN, a Unix socket)."""


def parse(data: bytes) -> Header | None:
    """The header that `data` begins with; None while it is incomplete. Raises ProxyProtocolError."""
    if data.startswith(_SIGNATURE):
        return _parse_v2(data)
    if data.startswith(_V1_PREFIX):
        return _parse_v1(data)
    if _SIGNATURE.startswith(data) or _V1_PREFIX.startswith(data):
        return None
    raise ProxyProtocolError("no PROXY header")


# Version 1


def _parse_v1(data: bytes) -> Header | None:
    end = data.find(b"\n", 0, _V1_LIMIT) + 1
    if not end:
        if len(data) >= _V1_LIMIT:
            raise ProxyProtocolError("a version 1 line above 107 bytes")
        return None
    line = data[:end]
    if _V1_UNKNOWN.fullmatch(line):
        return Header(end)
    match = _V1.fullmatch(line.decode("latin-1"))
    if match is None:
        raise ProxyProtocolError("a malformed version 1 line")
    source4, destination4, source6, destination6, *ports = match.groups()
    address = IPv4Address if source4 else IPv6Address
    try:
        source, _ = address(source4 or source6), address(destination4 or destination6)
    except ValueError:
        raise ProxyProtocolError("a malformed address in a version 1 line") from None
    if any(int(port) > 65535 for port in ports):
        raise ProxyProtocolError("a port above 65535 in a version 1 line")
    return Header(end, (_text(source), int(ports[0])))


# Version 2


def _parse_v2(data: bytes) -> Header | None:
    if len(data) > 12 and data[12] not in (_LOCAL, _PROXY):
        raise ProxyProtocolError("a version 2 header with an unknown version or command")
    if len(data) < _V2_FIXED:
        return None
    payload_length = int.from_bytes(data[14:16], "big")
    if payload_length > _V2_PAYLOAD_LIMIT:
        raise ProxyProtocolError("a version 2 header above 4 KiB")
    length = _V2_FIXED + payload_length
    if len(data) < length:
        return None
    if data[12] == _LOCAL:  # 2.2: whatever the rest says is to be ignored
        return Header(length)
    return _read_addresses(data[13], data[_V2_FIXED:length], length)


def _read_addresses(family: int, payload: bytes, length: int) -> Header:
    if family == _TCP4:
        _check_tlvs(payload, 12)
        return Header(length, (_text(IPv4Address(payload[:4])), int.from_bytes(payload[8:10], "big")))
    if family == _TCP6:
        _check_tlvs(payload, 36)
        return Header(length, (_text(IPv6Address(payload[:16])), int.from_bytes(payload[32:34], "big")))
    if family == _UNIX:
        _check_tlvs(payload, 216)
    elif family != _UNSPECIFIED:
        raise ProxyProtocolError("a version 2 header for something that is not a TCP connection")
    return Header(length)


def _check_tlvs(payload: bytes, start: int) -> None:
    """The addresses are there, and what follows them is whole TLVs (CVE-2026-47692 was a spill here)."""
    while start < len(payload):
        if start + 3 > len(payload):
            raise ProxyProtocolError("a cut TLV in a version 2 header")
        start += 3 + int.from_bytes(payload[start + 1 : start + 3], "big")
    if start != len(payload):
        raise ProxyProtocolError("a version 2 header shorter than what it announces")


# Both


def _text(address: IPv4Address | IPv6Address) -> str:
    return str((isinstance(address, IPv6Address) and address.ipv4_mapped) or address)
