"""One packet between two of our processes: a small JSON object, file descriptors beside it.

Packets go over SOCK_SEQPACKET, so each is whole or not there. A message is a frozen
dataclass; its type on the wire is the class's name, and a field named `fd` travels as a
descriptor. Reading is strict: an unknown type, a missing, foreign or mistyped field, a
descriptor too many or too few is a `PacketError`, and every descriptor that came with
such a packet is closed. Which messages there are is said in `control.channel` and
`control.link`; nothing here decides what to say.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from array import array
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

MAX_PACKET = 128 * 1024
"""Bytes; a certificate with 2000 host names of 60 characters fits."""

Messages = Mapping[str, type]
"""The messages of a conversation by their type on the wire."""


class PacketError(Exception):
    """A packet that is no message; the phrase is ours and quotes nothing of it."""


def messages(*kinds: type) -> Messages:
    """The conversation that consists of these dataclasses."""
    return {kind.__name__.lower(): kind for kind in kinds}


def send(sock: socket.socket, message: Any) -> None:
    """Send a message; its descriptors stay open here.

    Raises BlockingIOError when a non-blocking socket is full, OSError when the other end is gone,
    PacketError when the message is too large.
    """
    packet, fds = encode(message)
    socket.send_fds(sock, [packet], fds)


def receive(sock: socket.socket, known: Messages) -> Any | None:
    """The next message, one of `known`; None when a non-blocking socket has none.

    Raises EOFError at the end, PacketError for what is no message, OSError.
    """
    try:
        # socket.recv_fds ignores its flags in Python 3.11, and a child process would inherit a key.
        packet, ancillary, flags, _ = sock.recvmsg(MAX_PACKET + 1, _FDS_SPACE, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return None
    fds = _descriptors(ancillary)
    try:
        if not packet:
            raise EOFError("the other end of the conversation is closed")
        if len(packet) > MAX_PACKET or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise PacketError("the packet is too large")
        return decode(packet, fds, known)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def encode(message: Any) -> tuple[bytes, list[int]]:
    """The packet and the descriptors that go with it. Raises PacketError when it is too large."""
    fds: list[int] = []
    fields = {"type": type(message).__name__.lower(), **_plain(message, fds)}
    packet = json.dumps(fields, separators=(",", ":")).encode("ascii")
    if len(packet) > MAX_PACKET:
        raise PacketError("the message is larger than 128 KiB: a certificate names too many hosts")
    return packet, fds


def decode(packet: bytes, fds: list[int], known: Messages) -> Any:
    """The message in `packet`; all of `fds` stay the caller's when this raises PacketError."""
    try:
        value = json.loads(packet)
    except (ValueError, RecursionError):
        raise PacketError("the packet is not JSON") from None
    if not isinstance(value, dict):
        raise PacketError("the packet is not a JSON object")
    kind = value.pop("type", None)
    message = known.get(kind) if isinstance(kind, str) else None
    if message is None:
        raise PacketError("the type of the message is unknown")
    rest = list(fds)
    read = _built(message, value, rest)
    if rest:
        raise PacketError("the message came with a file descriptor that does not belong to it")
    return read


# Private


_FDS_SPACE = socket.CMSG_SPACE(4 * array("i").itemsize)


def _plain(message: Any, fds: list[int]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if field.name == "fd":
            fds.append(value)
        else:
            fields[field.name] = _plain(value, fds) if dataclasses.is_dataclass(value) else value
    return fields


def _built(kind: type, value: dict[str, Any], fds: list[int]) -> Any:
    """A `kind` made of exactly the fields in `value`, which is used up, and of the first of `fds`."""
    fields = {}
    for name, annotation in get_type_hints(kind).items():
        if name == "fd":
            if not fds:
                raise PacketError("a file descriptor is missing")
            fields[name] = fds.pop(0)
        else:
            fields[name] = _checked(value.pop(name, None), annotation, fds)
    if value:
        raise PacketError("the message holds a field that does not belong to it")
    try:
        return kind(**fields)
    except ValueError:
        raise PacketError("the fields of the message do not fit together") from None


def _checked(value: Any, annotation: Any, fds: list[int]) -> Any:
    if dataclasses.is_dataclass(annotation) and isinstance(value, dict):
        assert isinstance(annotation, type)
        return _built(annotation, value, fds)
    if get_origin(annotation) is Literal and isinstance(value, str) and value in get_args(annotation):
        return value
    if get_origin(annotation) is tuple and isinstance(value, list):
        return tuple(_checked(item, get_args(annotation)[0], fds) for item in value)
    if type(value) is annotation and (annotation is not int or value >= 0):
        return value
    raise PacketError("a field of the message is missing or of the wrong type")


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()
