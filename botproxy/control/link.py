"""What the supervisor and its children say to each other, over the link that each child has.

A child says `Ready` once, or `Failed`. The keeper is told of every worker that serves
(`Joined`, with the keeper's end of its channel) and of every change, and asks for workers
to be replaced, for new ticket keys and for the configuration to be read again. A worker
asks to be recycled. Both are told to retire; a worker says when it accepts no more. The
end of a link tells either side that the other one is gone.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
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
class Rotated:
    """How a change of the ticket keys ended; `problem` is empty when every worker has the new ones."""

    begun: float
    """Monotonic seconds at which the new keys were made."""
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
class Failed:
    """The child cannot do its work, for these reasons, and ends."""

    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Serve:
    """The keeper answers the admin socket from now on."""


@dataclass(frozen=True, slots=True)
class Reconfigure:
    """Read the configuration again, and have new processes take over if it has changed."""


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """The configuration was read again, for SIGHUP or because a keeper asked.

    `problems` is empty when it did not fail. If it did not and nothing has changed, the certificate
    files are to be looked at.
    """

    begun: float
    """Monotonic seconds at which it was read."""
    changed: bool
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recycle:
    """The worker has grown too large, and wants to be replaced by a new one."""


@dataclass(frozen=True, slots=True)
class Retire:
    """Take no more connections, and end when the last one has; after `milliseconds` if it is `limited`."""

    limited: bool
    milliseconds: int


@dataclass(frozen=True, slots=True)
class Retired:
    """The worker was told to retire, and accepts no more."""


def shown(problems: Sequence[str]) -> tuple[str, ...]:
    """As many of `problems`, and as much of each, as a packet holds whatever they are about."""
    return tuple(problem[:400] for problem in problems[:20])


ToChild = Joined | Rotated | Serve | Reconfigured | Retire
ToSupervisor = Ready | Failed | Replace | Rotate | Reconfigure | Recycle | Retired

_TO_CHILD = packets.messages(Joined, Rotated, Serve, Reconfigured, Retire)
_TO_SUPERVISOR = packets.messages(Ready, Failed, Replace, Rotate, Reconfigure, Recycle, Retired)


def from_supervisor(sock: socket.socket) -> ToChild | None:
    """The next message at the child's end; see `packets.receive`."""
    message: ToChild | None = packets.receive(sock, _TO_CHILD)
    return message


def from_child(sock: socket.socket) -> ToSupervisor | None:
    """The next message at the supervisor's end; see `packets.receive`."""
    message: ToSupervisor | None = packets.receive(sock, _TO_SUPERVISOR)
    return message
