"""What keeper and worker say to each other, over the channel that each worker has of its own.

The supervisor makes the channel before it forks the worker and keeps both ends, so that
a keeper that died can be replaced; the end of a worker ends its channel. The road:
keeper `Prepare` for each certificate of a set; worker `Prepared` or `Refused`; keeper
`Commit`; worker `Serving`. A set is named by what is in it, so saying anything twice
changes nothing. `Expect` and `Met` tell a probe of the keeper over the real listener
which worker it was that answered.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from botproxy.control import packets
from botproxy.tls.context import Handed


@dataclass(frozen=True, slots=True)
class Prepare:
    """One certificate of a set: `index` from 0 to `count` - 1, in the order of the configuration.

    Index 0 begins anew. Whoever receives it closes `certificate.fd`.
    """

    set: str
    index: int
    count: int
    certificate: Handed

    def __post_init__(self) -> None:
        if self.index >= self.count:
            raise ValueError("the index of a certificate is not below their count")


@dataclass(frozen=True, slots=True)
class Prepared:
    """The whole set is loaded and proven; the worker can serve it at once."""

    set: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The worker could not load the set and goes on with what it has."""

    set: str
    reason: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Serve the set that was prepared."""

    set: str


@dataclass(frozen=True, slots=True)
class Serving:
    """Every handshake from now on gets this set."""

    set: str
    fingerprints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Expect:
    """Connections of this machine from these source ports are probes; they stand beside all limits."""

    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Expecting:
    """The answer to `Expect`."""

    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Met:
    """A handshake with the probe from this port was completed here."""

    port: int


ToWorker = Prepare | Commit | Expect
ToKeeper = Prepared | Refused | Serving | Expecting | Met

_TO_WORKER = packets.messages(Prepare, Commit, Expect)
_TO_KEEPER = packets.messages(Prepared, Refused, Serving, Expecting, Met)


def from_keeper(sock: socket.socket) -> ToWorker | None:
    """The next message at the worker's end; see `packets.receive`."""
    message: ToWorker | None = packets.receive(sock, _TO_WORKER)
    return message


def from_worker(sock: socket.socket) -> ToKeeper | None:
    """The next message at the keeper's end; see `packets.receive`."""
    message: ToKeeper | None = packets.receive(sock, _TO_KEEPER)
    return message
