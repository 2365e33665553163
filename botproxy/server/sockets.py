"""The listening sockets: bound by the supervisor, one set for each worker slot.

Every slot has its own SO_REUSEPORT socket, so that the kernel spreads the
connections, and a slot's socket outlives its worker, so that connections queued
for a worker that died are served by its replacement. An address that stays configured
keeps its sockets, whatever else changes. Nothing is accepted here.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from botproxy.config.values import Network, split_address
from botproxy.keeper.probes import Endpoint

if TYPE_CHECKING:
    from botproxy.config.schema import Listen

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

    def listen(self) -> None:
        """Have the kernel queue connections, for somebody who accepts them; whoever passed it may have."""
        if not self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self.sock.listen(BACKLOG)


Key = tuple[bool, str]
"""Whether TLS is spoken, and the listening address as it is configured."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Which worker slot accepts from which sockets."""

    slots: list[list[Bound]]
    opened: list[tuple[Key, socket.socket]]
    """Those that were not open before."""


def port_of(sock: socket.socket) -> int:
    """The port `sock` is bound to; 0 for a Unix socket."""
    name = sock.getsockname()
    return int(name[1]) if isinstance(name, tuple) else 0


class Listening:
    """Every socket that is listened on, kept over changes of workers and of the configuration."""

    def __init__(self, handed: Mapping[Key, Sequence[socket.socket]] | None = None) -> None:
        """`handed`: sockets that a predecessor passed on."""
        self._open = {key: list(socks) for key, socks in (handed or {}).items()}
        self._begins = not handed
        """Whether nothing is served yet: then connections are queued at once. Later a socket of ours begins
        with the worker that accepts from it: if none came after all, what was queued would be lost."""
        self._passed = _passed_by_manager()
        # Numbers that were there before us; any other that a configuration may name is one of our own.
        self._given = {int(name) for name in os.listdir("/proc/self/fd")}

    def arrange(self, listens: Sequence[Listen], plain: Sequence[Listen], slots: int) -> Arrangement:
        """For each worker slot its sockets: those that are open, and new ones where any are missing.

        Raises BindError; then nothing new stays open.
        """
        arrangement = Arrangement([[] for _ in range(slots)], [])
        try:
            for tls, group in ((True, listens), (False, plain)):
                for listen, address in ((each, one) for each in group for one in self._expand(each.address)):
                    socks = self._enough((tls, address), slots, arrangement)
                    shared = address.startswith("fd:")
                    # More sockets than workers, where there were more workers before: none may be closed,
                    # for the connections in its queue would be reset.
                    for number, sock in enumerate(socks):
                        bound = Bound(sock, tls, listen.proxy_protocol_from, shared)
                        arrangement.slots[number % slots].append(bound)
        except BaseException:
            self.undo(arrangement)
            raise
        self._begins = False
        return arrangement

    def undo(self, arrangement: Arrangement) -> None:
        """Close what was opened for an arrangement that is not used."""
        for key, sock in arrangement.opened:
            sock.close()
            self._open[key].remove(sock)
            if not self._open[key]:
                del self._open[key]
        arrangement.opened.clear()

    def keep_only(self, arrangement: Arrangement) -> None:
        """Close what an arrangement does not use."""
        used = {bound.sock for slot in arrangement.slots for bound in slot}
        for key, socks in list(self._open.items()):
            if used.isdisjoint(socks):
                for sock in socks:
                    sock.close()
                del self._open[key]
                if key[1].startswith("fd:"):
                    self._given.discard(int(key[1][3:]))

    def sockets(self) -> dict[Key, list[socket.socket]]:
        """All of them, for a successor."""
        return self._open

    def flat(self) -> list[socket.socket]:
        """All of them, for somebody who must not hold any."""
        return [sock for socks in self._open.values() for sock in socks]

    def close(self, but: Sequence[Bound] = ()) -> None:
        """Close all, but those of one worker."""
        kept = {bound.sock for bound in but}
        for sock in self.flat():
            if sock not in kept:
                sock.close()

    def _enough(self, key: Key, slots: int, arrangement: Arrangement) -> list[socket.socket]:
        """The sockets of `key`, at least one for each slot."""
        address = key[1]
        socks = self._open.setdefault(key, [])
        ports = {port_of(sock) for each in self._open.values() for sock in each}
        try:
            while len(socks) < slots:
                if address.startswith("fd:") and int(address[3:]) not in self._given:
                    raise BindError(
                        f'cannot use "{address}": it was not open when botproxy was started; '
                        "pass a listening socket with that number"
                    )
                sock = _another(address, socks, ports, queueing=self._begins)
                socks.append(sock)
                arrangement.opened.append((key, sock))
        finally:
            if not socks:
                del self._open[key]
        return socks

    def _expand(self, address: str) -> list[str]:
        """`systemd` stands for every socket that the service manager passed, `systemd:NAME` for some."""
        if not address.startswith("systemd"):
            return [address]
        _, _, name = address.partition(":")
        found = [fd for fd, called in self._passed if name in ("", called)]
        if not found:
            known = ", ".join(sorted({called for _, called in self._passed})) or "none"
            raise BindError(
                f'cannot use "{address}": no such socket was passed (there are: {known}); '
                "start botproxy from a .socket unit, with FileDescriptorName= for a name"
            )
        return [f"fd:{fd}" for fd in found]


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


def url_of(bound: Bound) -> str:
    """Where a browser on this machine finds a TLS listener; of a Unix socket, where it is."""
    if bound.sock.family not in (socket.AF_INET, socket.AF_INET6):
        return f"unix:{os.fsdecode(bound.sock.getsockname()).replace(chr(0), '@')}"
    host, port = bound.sock.getsockname()[:2]
    if host in ("::", "0.0.0.0"):
        host = "localhost"
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _passed_by_manager() -> list[tuple[int, str]]:
    """Descriptors and names of the sockets that the service manager passed (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count, names = os.environ.get("LISTEN_FDS", "0"), os.environ.get("LISTEN_FDNAMES", "").split(":")
    fds = range(_FIRST_PASSED, _FIRST_PASSED + (int(count) if count.isdigit() else 0))
    return [(fd, names[at] if at < len(names) else "") for at, fd in enumerate(fds)]


def _another(
    address: str, socks: Sequence[socket.socket], ports: Set[int], *, queueing: bool
) -> socket.socket:
    """One more socket for `address`, beside `socks`. `ports`: on which we listen already."""
    if address.startswith("fd:"):
        return _duplicate(address, socks[0]) if socks else _inherited(address)
    host, port = split_address(address)
    port = port_of(socks[0]) if socks else port  # port 0: the others share what the first was given
    try:
        if not socks and port not in ports:
            # SO_REUSEPORT would let a second botproxy share the port and take half of the connections.
            _bind(host, port, shared=False).close()
        return _bind(host, port, queueing=queueing)
    except UnicodeError as error:
        raise BindError(f'cannot listen on "{address}": this is no name of a host') from error
    except OSError as error:
        raise BindError(f'cannot listen on "{address}": {_advice(error, port)}') from error


def _duplicate(address: str, sock: socket.socket) -> socket.socket:
    try:
        return sock.dup()
    except OSError as error:
        raise BindError(f'cannot listen on "{address}": {_advice(error, 0)}') from error


def _bind(host: str, port: int, *, shared: bool = True, queueing: bool = True) -> socket.socket:
    """A socket that is bound; one that is not `queueing` yet begins with `Bound.listen`."""
    try:
        return _open(host or "::", port, dual_stack=not host, shared=shared, queueing=queueing)
    except OSError as error:
        if host or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        # A machine without IPv6.
        return _open("0.0.0.0", port, dual_stack=False, shared=shared, queueing=queueing)


def _open(host: str, port: int, *, dual_stack: bool, shared: bool, queueing: bool) -> socket.socket:
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
        if queueing:
            sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _inherited(address: str) -> socket.socket:
    """A socket that somebody else opened for us."""
    try:
        sock = socket.socket(fileno=int(address.removeprefix("fd:")))
    except OSError as error:
        raise BindError(
            f'cannot use "{address}": {os.strerror(error.errno or errno.EBADF).lower()}; '
            "pass a listening socket with that number"
        ) from error
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()  # whoever's it is
        raise BindError(f'"{address}" is a socket that does not listen')
    sock.setblocking(False)
    return sock


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
