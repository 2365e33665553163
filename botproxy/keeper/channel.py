"""What keeper and worker say to each other, over one SOCK_SEQPACKET socketpair per worker slot.

A message is one packet: a small JSON object, with the memfd of a certificate beside
`Prepare`. Both ends read strictly: an unknown type, a missing, foreign or mistyped
field, a wrong number of file descriptors is a `ChannelError`, and every descriptor that
came with such a packet is closed. Nothing here decides what to say.

The road: worker `Hello`; keeper `Prepare` for each certificate; worker `Prepared` or
`Refused`; keeper `Commit`; worker `Serving`. Every message bears the worker's pid, for a
slot outlives its workers: what was queued for one that died must not reach the next.
"""

from __future__ import annotations

import json
import os
import socket
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from botproxy.tls.certificates import KeyType
from botproxy.tls.context import Handed

MAX_MESSAGE = 128 * 1024
"""Bytes of a packet; 2000 host names of 60 characters fit."""


class ChannelError(Exception):
    """A packet that is no message; the phrase is ours and quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker is there and has no certificates yet."""

    pid: int


@dataclass(frozen=True, slots=True)
class Prepare:
    """One certificate of a generation: `index` from 0 to `count` - 1, in the order of the configuration.

    Index 0 begins anew. Whoever receives it closes `certificate.fd`.
    """

    pid: int
    generation: int
    index: int
    count: int
    certificate: Handed


@dataclass(frozen=True, slots=True)
class Prepared:
    """The whole generation is loaded and proven; the worker can serve it at once."""

    pid: int
    generation: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The worker could not load the generation and goes on with what it has."""

    pid: int
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Serve the generation that was prepared."""

    pid: int
    generation: int


@dataclass(frozen=True, slots=True)
class Serving:
    """Every handshake from now on gets this generation."""

    pid: int
    generation: int
    fingerprints: tuple[str, ...]


Message = Hello | Prepare | Prepared | Refused | Commit | Serving


def send(sock: socket.socket, message: Message) -> None:
    """Send `message`; the fd of a Prepare stays open here.

    Raises BlockingIOError when a non-blocking socket is full, OSError when the other end is gone,
    ChannelError when the message is too large.
    """
    packet, fds = encode(message)
    socket.send_fds(sock, [packet], fds)


def receive(sock: socket.socket) -> Message | None:
    """The next message; None when a non-blocking socket has none.

    Raises EOFError at the end, ChannelError for what is no message, OSError.
    """
    try:
        # socket.recv_fds ignores its flags in Python 3.11, and a child process would inherit a key.
        packet, ancillary, flags, _ = sock.recvmsg(MAX_MESSAGE + 1, _FDS_SPACE, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return None
    fds = _descriptors(ancillary)
    try:
        if not packet:
            raise EOFError("the other end of the channel is closed")
        if len(packet) > MAX_MESSAGE or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ChannelError("the packet is too large")
        return decode(packet, fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def encode(message: Message) -> tuple[bytes, list[int]]:
    """The packet and the descriptors that go with it. Raises ChannelError when it is too large."""
    fields: dict[str, Any] = {"type": type(message).__name__.lower(), "pid": message.pid}
    fds: list[int] = []
    match message:
        case Prepare(certificate=certificate):
            fields |= {
                "generation": message.generation,
                "index": message.index,
                "count": message.count,
                "names": certificate.names,
                "key_type": certificate.key_type,
                "fingerprint": certificate.fingerprint,
                "hsts": certificate.hsts,
            }
            fds.append(certificate.fd)
        case Prepared() | Commit():
            fields |= {"generation": message.generation}
        case Refused():
            fields |= {"generation": message.generation, "reason": message.reason}
        case Serving():
            fields |= {"generation": message.generation, "fingerprints": message.fingerprints}
        case Hello():
            pass
    packet = json.dumps(fields, separators=(",", ":")).encode("ascii")
    if len(packet) > MAX_MESSAGE:
        raise ChannelError("the message is larger than 128 KiB: a certificate names too many hosts")
    return packet, fds


def decode(packet: bytes, fds: list[int]) -> Message:
    """The message in `packet`; the descriptors stay the caller's when this raises ChannelError."""
    try:
        value = json.loads(packet)
    except (ValueError, RecursionError):
        raise ChannelError("the packet is not JSON") from None
    if not isinstance(value, dict):
        raise ChannelError("the packet is not a JSON object")
    kind = value.pop("type", None)
    read = _READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise ChannelError("the type of the message is unknown")
    if len(fds) != (1 if kind == "prepare" else 0):
        raise ChannelError("the number of file descriptors does not fit the message")
    fields = _Fields(value)
    message = read(fields, fds)
    if value:
        raise ChannelError("the message holds a field that does not belong to it")
    return message


# Private


_FDS_SPACE = socket.CMSG_SPACE(4 * array("i").itemsize)
_KEY_TYPES: dict[str, KeyType] = {name: name for name in get_args(KeyType)}


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


class _Fields:
    """Takes the fields out of a message one by one, each with its type checked."""

    def __init__(self, value: dict[str, Any]) -> None:
        self._value = value

    def number(self, name: str) -> int:
        value = self._value.pop(name, None)
        if type(value) is not int or value < 0:
            raise ChannelError("a field of the message is not a whole number")
        return value

    def text(self, name: str) -> str:
        value = self._value.pop(name, None)
        if not isinstance(value, str):
            raise ChannelError("a field of the message is not a text")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._value.pop(name, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ChannelError("a field of the message is not a list of texts")
        return tuple(value)

    def truth(self, name: str) -> bool:
        value = self._value.pop(name, None)
        if not isinstance(value, bool):
            raise ChannelError("a field of the message is neither true nor false")
        return value


def _prepare(fields: _Fields, fds: list[int]) -> Prepare:
    pid, generation = fields.number("pid"), fields.number("generation")
    index, count = fields.number("index"), fields.number("count")
    names, key_type = fields.texts("names"), _KEY_TYPES.get(fields.text("key_type"))
    if index >= count:
        raise ChannelError("the index of a certificate is not below their count")
    if key_type is None:
        raise ChannelError("the key type is unknown")
    handed = Handed(
        names=names,
        key_type=key_type,
        fingerprint=fields.text("fingerprint"),
        hsts=fields.truth("hsts"),
        fd=fds[0],
    )
    return Prepare(pid, generation, index, count, handed)


_READERS: dict[str, Callable[[_Fields, list[int]], Message]] = {
    "hello": lambda fields, _: Hello(fields.number("pid")),
    "prepare": _prepare,
    "prepared": lambda fields, _: Prepared(fields.number("pid"), fields.number("generation")),
    "refused": lambda fields, _: Refused(
        fields.number("pid"), fields.number("generation"), fields.text("reason")
    ),
    "commit": lambda fields, _: Commit(fields.number("pid"), fields.number("generation")),
    "serving": lambda fields, _: Serving(
        fields.number("pid"), fields.number("generation"), fields.texts("fingerprints")
    ),
}
