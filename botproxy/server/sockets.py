"""The listening sockets: bound by the supervisor, one set for each worker slot.

Every slot has its own SO_REUSEPORT socket, so that the kernel spreads the
connections, and a slot's socket outlives its worker, so that connections queued
for a worker that died are served by its replacement. Nothing is accepted here.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from botproxy.config.schema import Listen, Network, split_address
from botproxy.keeper.probes import Endpoint

BACKLOG = 4096
"""Lowered by the kernel to net.core.somaxconn."""

_FIRST_PASSED = 3


class BindError(Exception):
    """An address that cannot be listened on; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A listening socket of one worker slot."""

    sock: socket.socket
    tls: bool
    proxy_protocol_from: tuple[Network, ...]
    shared: bool = False
    """Whether the workers of all slots accept from it: it was opened by somebody else."""
    port: int = field(init=False)
    """Kept, for connections that are taken up after it was closed. 0 for a Unix socket."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "port", port_of(self.sock))


def port_of(sock: socket.socket) -> int:
    """The port `sock` is bound to; 0 for a Unix socket."""
    name = sock.getsockname()
    return int(name[1]) if isinstance(name, tuple) else 0


def bind_all(listens: Sequence[Listen], plain: Sequence[Listen], workers: int) -> list[list[Bound]]:
    """For each worker slot its sockets. Raises BindError; then nothing stays bound."""
    slots: list[list[Bound]] = [[] for _ in range(workers)]
    try:
        for tls, group in ((True, listens), (False, plain)):
            for listen in (each for entry in group for each in _expand(entry)):
                shared = listen.address.startswith("fd:")
                for slot, sock in zip(slots, _bind(listen.address, workers), strict=True):
                    slot.append(Bound(sock, tls, listen.proxy_protocol_from, shared))
    except BaseException:
        close_all(slots)
        raise
    return slots


def close_all(slots: Sequence[Sequence[Bound]]) -> None:
    for slot in slots:
        for bound in slot:
            bound.sock.close()


def endpoint_of(bounds: Sequence[Bound]) -> Endpoint | None:
    """Where a client of this machine reaches the TLS listener; None when it is no TCP socket."""
    for bound in bounds:
        if not bound.tls or bound.sock.family not in (socket.AF_INET, socket.AF_INET6):
            continue
        family = bound.sock.family
        host = str(bound.sock.getsockname()[0])
        if host == "::" and not bound.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            family, host = socket.AF_INET, "0.0.0.0"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        address = ipaddress.ip_address(host.partition("%")[0])
        speaks = any(address in network for network in bound.proxy_protocol_from)
        return Endpoint(family, (host, bound.port), speaks, bound.shared)
    return None


def _expand(listen: Listen) -> list[Listen]:
    """`systemd` stands for every socket that the service manager passed (sd_listen_fds(3))."""
    if listen.address != "systemd":
        return [listen]
    passed = os.environ.get("LISTEN_FDS", "0") if os.environ.get("LISTEN_PID") == str(os.getpid()) else "0"
    if not passed.isdigit() or passed == "0":
        raise BindError('cannot use "systemd": no socket was passed; start botproxy from a .socket unit')
    return [
        Listen(address=f"fd:{fd}", proxy_protocol_from=listen.proxy_protocol_from)
        for fd in range(_FIRST_PASSED, _FIRST_PASSED + int(passed))
    ]


def _bind(address: str, workers: int) -> list[socket.socket]:
    if address.startswith("fd:"):
        return _inherited(address, workers)
    host, port = split_address(address)
    socks: list[socket.socket] = []
    try:
        # SO_REUSEPORT would let a second botproxy share the port and take half of the connections.
        _listen(host, port, shared=False).close()
        for _ in range(workers):
            socks.append(_listen(host, port))
            port = port_of(socks[0])  # port 0: the others share what the first was given
    except OSError as error:
        for sock in socks:
            sock.close()
        raise BindError(f'cannot listen on "{address}": {_advice(error, port)}') from error
    return socks


def _listen(host: str, port: int, *, shared: bool = True) -> socket.socket:
    try:
        return _open(host or "::", port, dual_stack=not host, shared=shared)
    except OSError as error:
        if host or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _open("0.0.0.0", port, dual_stack=False, shared=shared)  # a machine without IPv6


def _open(host: str, port: int, *, dual_stack: bool, shared: bool) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _inherited(address: str, workers: int) -> list[socket.socket]:
    """All slots share a socket that somebody else opened for us."""
    try:
        first = socket.socket(fileno=int(address.removeprefix("fd:")))
    except OSError as error:
        raise BindError(
            f'cannot use "{address}": {os.strerror(error.errno or errno.EBADF).lower()}; '
            "pass a listening socket with that number"
        ) from error
    if not first.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        first.close()
        raise BindError(f'"{address}" is a socket that does not listen')
    first.setblocking(False)
    return [first, *(first.dup() for _ in range(workers - 1))]


def _advice(error: OSError, port: int) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"no permission for port {port}; start as root (workers drop to `user:`), "
            "grant CAP_NET_BIND_SERVICE, pass a socket with fd:N, or listen on a port from 1024 on"
        )
    if error.errno == errno.EADDRINUSE:
        return f"another program already listens on port {port}; stop it or choose another port"
    if isinstance(error, socket.gaierror):
        return "the host does not resolve to an address of this machine"
    return os.strerror(error.errno).lower() if error.errno else "unknown error"
