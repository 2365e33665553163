"""Which server may be measured: one on this machine, or one that its owner names twice.

A benchmark is an attack on whoever did not ask for it. What the addresses of this machine lead to is the
affair of whoever may log in here, so it is measured at full speed. Any other host is measured only when
`--own-host` repeats its name, and then at a rate that a browser exceeds: a flag proves nothing, so what it
permits must be harmless. The name is resolved once, here; what was judged is what is connected to.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from botproxy.cli.verb import WrongUsage

CONNECT_PATIENCE = 5.0

FORCED = (Path("/proc/sys/net/ipv4/ip_nonlocal_bind"), Path("/proc/sys/net/ipv6/ip_nonlocal_bind"))
"""Switches by which the kernel lets a socket have any address."""


class UnknownHostError(Exception):
    """The host has no address; says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server that may be measured."""

    host: str
    port: int
    family: socket.AddressFamily
    address: tuple[object, ...]
    """As `socket.connect` takes it."""
    local: bool
    """Whether the address is one of this machine."""


def target(url: str, own_host: str | None) -> Target:
    """The server at `url`. Raises WrongUsage when it may not be measured, UnknownHostError."""
    host, port = _host_and_port(url)
    if own_host is not None and own_host.lower() != host.lower():
        raise WrongUsage(f'option "--own-host": expected "{host}", the host of the URL, found "{own_host}"')
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UnknownHostError(getattr(error, "strerror", None) or str(error)) from None
    local = all(is_ours(each[0], each[4]) for each in found)
    if not local and own_host is None:
        foreign = next(each[4][0] for each in found if not is_ours(each[0], each[4]))
        raise WrongUsage(
            f'expected a server on this machine, found "{host}" at {foreign}',
            f"run this beside the server; if it is yours, --own-host {host} measures slowly",
        )
    # localhost has two addresses, and many servers listen at one.
    family, _, _, _, address = next((each for each in found if _accepts(each[0], each[4])), found[0])
    return Target(host, port, family, address, local)


def is_ours(family: socket.AddressFamily, address: tuple[object, ...]) -> bool:
    """Whether a socket of this machine can have `address`: the kernel knows, and lists go stale."""
    ip = ipaddress.ip_address(str(address[0]))
    if ip.is_loopback or any(_says_yes(path) for path in FORCED):
        return ip.is_loopback
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((address[0], 0, *address[2:]))
    except OSError:
        return False
    return True


# Private


def _host_and_port(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        port = 443 if parts.port is None else parts.port
    except ValueError as error:
        raise WrongUsage(f'expected "https://HOST[:PORT]", found "{url}": {str(error).lower()}') from None
    if parts.scheme != "https" or not parts.hostname or not port:
        raise WrongUsage(f'expected "https://HOST[:PORT]", found "{url}"')
    return parts.hostname, port


def _accepts(family: socket.AddressFamily, address: tuple[object, ...]) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(CONNECT_PATIENCE)
        return sock.connect_ex(address) == 0


def _says_yes(path: Path) -> bool:
    """Whether a switch is on, which makes the question useless."""
    try:
        return path.read_text().strip() != "0"
    except OSError:
        return False  # a kernel without that protocol
