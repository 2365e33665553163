"""What the supervisor and its children say to each other, over the link that each child has.

A child says `Ready` once. The keeper is told of every worker that serves (`Joined`, with
the keeper's end of its channel) and of SIGHUP, and asks for workers to be replaced and
for new ticket keys; a worker is told to retire. The end of a link tells either side that
the other one is gone.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from botproxy.control import packets


@dataclass(frozen=True, slots=True)
class Ready:
    """The child does its work from now on."""


@dataclass(frozen=True, slots=True)
class Joined:
    """There is a worker in this slot; the end of its channel is the keeper's."""

    slot: int
    pid: int
    fd: int


@dataclass(frozen=True, slots=True)
class Reload:
    """SIGHUP came: look at everything again."""


@dataclass(frozen=True, slots=True)
class Rotated:
    """How the last `Rotate` ended; `problem` is empty when every worker has the new ticket keys."""

    problem: str


@dataclass(frozen=True, slots=True)
class Replace:
    """A worker that does not answer; `why` is for the log."""

    pid: int
    why: str


@dataclass(frozen=True, slots=True)
class Rotate:
    """Make new ticket keys, and workers that have them."""


@dataclass(frozen=True, slots=True)
class Retire:
    """Take no more connections, and end when the last one has."""


ToChild = Joined | Reload | Rotated | Retire
ToSupervisor = Ready | Replace | Rotate

_TO_CHILD = packets.messages(Joined, Reload, Rotated, Retire)
_TO_SUPERVISOR = packets.messages(Ready, Replace, Rotate)


def from_supervisor(sock: socket.socket) -> ToChild | None:
    """The next message at the child's end; see `packets.receive`."""
    message: ToChild | None = packets.receive(sock, _TO_CHILD)
    return message


def from_child(sock: socket.socket) -> ToSupervisor | None:
    """The next message at the supervisor's end; see `packets.receive`."""
    message: ToSupervisor | None = packets.receive(sock, _TO_SUPERVISOR)
    return message
