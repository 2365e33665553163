"""Who the client is, and how the bot is told.

Decides the client's address behind trusted proxies (the right-most address of
X-Forwarded-For that is not one of theirs) and writes the lines that say so:
X-Forwarded-*, X-Real-IP and Forwarded (RFC 7239). What a peer that is not trusted
claims is never looked at.

Before: `proxy`. After: `policy.headers`, which removes the claims.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from botproxy.config.values import Network
from botproxy.fields import Fields
from botproxy.model import Peer

_HOPS = 32
"""Entries of X-Forwarded-For that are looked at, from the right."""
_HOP_LENGTH = 64
"""More than any address with port has; what is cut is no address."""
_PORT = r"(?::[0-9]{1,5})?"
_HOP = re.compile(rf"([0-9.]{{7,15}}){_PORT}|\[([0-9A-Fa-f:.]{{2,45}})\]{_PORT}|([0-9A-Fa-f:.]{{2,45}})")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_AUTHORITY = re.compile(rb"[A-Za-z0-9._-]{1,255}(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?")
_DIGITS = re.compile(rb"[0-9]{1,5}")


def client_address(peer: Peer, fields: Fields, trusted: Sequence[Network]) -> str:
    """Address of the client that `peer` is or speaks for; `trusted` are our own proxies."""
    if not peer.trusted:
        return peer.address
    chain = _chain(fields, trusted)
    return chain[0] if chain else peer.address


@lru_cache(maxsize=512)
def lines(client: str, authority: bytes, port: int, scheme: bytes) -> bytes:
    """The field lines about a client that is the peer itself, without the last line end.

    One client sends many requests, so what is said about it is worth keeping.
    """
    return _lines((client,), authority, _port_of(authority, port, scheme), scheme)


def lines_behind(
    peer: Peer, fields: Fields, trusted: Sequence[Network], authority: bytes, scheme: bytes
) -> bytes:
    """As `lines`, for a trusted peer: its chain and its word on scheme, host and port are kept."""
    proto = (fields.sole(b"x-forwarded-proto") or b"").lower()
    host = fields.sole(b"x-forwarded-host") or b""
    port = fields.sole(b"x-forwarded-port") or b""
    return _lines(
        (*_chain(fields, trusted), peer.address),
        host if _AUTHORITY.fullmatch(host) else authority,
        port if _DIGITS.fullmatch(port) else _port_of(authority, peer.local_port, scheme),
        proto if proto in (b"http", b"https") else scheme,
    )


# Private


def _port_of(authority: bytes, local: int, scheme: bytes) -> bytes:
    """The port as the client knows it: bots build the address that a signature covers from it.

    The socket's own port, `local`, is another one behind a container's port mapping.
    """
    if not authority:
        return b"%d" % local
    _, named, port = authority.rpartition(b"]")[2].rpartition(b":")
    if named:
        return port
    return b"443" if scheme == b"https" else b"80"


def _chain(fields: Fields, trusted: Sequence[Network]) -> list[str]:
    """The client, then the trusted proxies between it and the peer; empty where the peer does not say."""
    joined = b",".join(fields.values(b"x-forwarded-for"))
    chain: list[str] = []
    for entry in reversed(joined.rsplit(b",", _HOPS)[-_HOPS:]):
        address = _hop(entry.strip(b" \t")[:_HOP_LENGTH])
        if address is None:
            break
        chain.insert(0, str(address))
        if not any(address in network for network in trusted):
            break
    return chain


@lru_cache(maxsize=1024)
def _hop(entry: bytes) -> IPv4Address | IPv6Address | None:
    """The address in one entry of X-Forwarded-For; None for anything else."""
    match = _HOP.fullmatch(entry.decode("latin-1"))
    if match is None:
        return None
    try:
        if match[1]:
            return IPv4Address(match[1])
        address = IPv6Address(match[2] or match[3])
    except ValueError:
        return None
    return address.ipv4_mapped or address


@lru_cache(maxsize=64)
def _lines(chain: tuple[str, ...], authority: bytes, port: bytes, scheme: bytes) -> bytes:
    addresses = [address.encode("ascii") for address in chain]
    about = [b"host=" + _quoted(authority)] if authority else []
    first = b";".join([b"for=" + _node(addresses[0]), *about, b"proto=" + scheme])
    return b"\r\n".join(
        [
            b"X-Forwarded-For: " + b", ".join(addresses),
            b"X-Forwarded-Proto: " + scheme,
            *([b"X-Forwarded-Host: " + authority] if authority else []),
            b"X-Forwarded-Port: " + port,
            b"X-Real-IP: " + addresses[0],
            b"Forwarded: " + b", ".join([first, *(b"for=" + _node(each) for each in addresses[1:])]),
        ]
    )


def _node(address: bytes) -> bytes:
    """RFC 7239 6: IPv6 addresses stand in brackets, and in quotes because of the colons."""
    return b'"[' + address + b']"' if b":" in address else address


def _quoted(value: bytes) -> bytes:
    """RFC 7239 4: a token as it is, anything else as a quoted-string."""
    if _TOKEN.fullmatch(value):
        return value
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
