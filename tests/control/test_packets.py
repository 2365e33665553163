"""A message arrives as it was sent, anything else is refused, and no descriptor is lost."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botproxy.control import packets
from botproxy.control.packets import MAX_PACKET, PacketError
from tests.control.conftest import Ends


@dataclass(frozen=True, slots=True)
class Note:
    number: int
    text: str
    right: bool


@dataclass(frozen=True, slots=True)
class Inner:
    words: tuple[str, ...]
    kind: Literal["one", "two"]
    fd: int


@dataclass(frozen=True, slots=True)
class Parcel:
    index: int
    inner: Inner

    def __post_init__(self) -> None:
        if self.index > 9:
            raise ValueError("ten is too much")


@dataclass(frozen=True, slots=True)
class Load:
    """As many descriptors as the kernel is given room for."""

    one: Inner
    two: Inner
    three: Inner
    four: Inner


@dataclass(frozen=True, slots=True)
class Stranger:
    """Nobody here knows this message."""


KNOWN = packets.messages(Note, Parcel, Load)
NOTE: dict[str, Any] = {"type": "note", "number": 1, "text": "x", "right": True}
INNER: dict[str, Any] = {"words": ["a", "b"], "kind": "one"}
PARCEL: dict[str, Any] = {"type": "parcel", "index": 1, "inner": INNER}
LOAD: dict[str, Any] = {"type": "load", **dict.fromkeys(("one", "two", "three", "four"), INNER)}


def send_for_ever(sock: socket.socket) -> None:
    while True:
        packets.send(sock, Note(1, "x" * 10_000, True))


# What is sent arrives


@given(st.builds(Note, st.integers(min_value=0), st.text(max_size=1000), st.booleans()))
def test_a_message_is_read_as_it_was_written(message: Note):
    assert packets.decode(*packets.encode(message), KNOWN) == message


@given(st.lists(st.text(max_size=20)), st.sampled_from(["one", "two"]))
def test_what_is_inside_a_message_is_read_as_it_was_written(words: list[str], kind: Any):
    message = Parcel(9, Inner(tuple(words), kind, 7))
    packet, fds = packets.encode(message)
    assert fds == [7]
    assert b"fd" not in json.loads(packet)
    assert packets.decode(packet, fds, KNOWN) == message


def test_a_descriptor_arrives_as_one_of_its_own_that_no_child_inherits(ends: Ends, file: int):
    ours, theirs = ends
    sent = Parcel(0, Inner((), "two", file))
    packets.send(ours, sent)
    os.fstat(file)
    received = packets.receive(theirs, KNOWN)
    assert isinstance(received, Parcel)
    fd = received.inner.fd
    try:
        assert received == replace(sent, inner=replace(sent.inner, fd=fd))
        assert fd != file
        assert os.pread(fd, 10, 0) == b"content"
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_messages_keep_their_order_and_their_borders(ends: Ends):
    ours, theirs = ends
    sent = [Note(number, "x" * number, False) for number in range(10)]
    for note in sent:
        packets.send(ours, note)
    assert [packets.receive(theirs, KNOWN) for _ in sent] == sent


def test_none_means_that_nothing_is_there_and_the_end_is_an_error(ends: Ends):
    ours, theirs = ends
    assert packets.receive(theirs, KNOWN) is None
    ours.shutdown(socket.SHUT_RDWR)
    with pytest.raises(EOFError):
        packets.receive(theirs, KNOWN)
    with pytest.raises(BrokenPipeError):
        packets.send(theirs, Note(1, "", True))


def test_a_full_socket_says_so(ends: Ends):
    with pytest.raises(BlockingIOError):
        send_for_ever(ends[0])


# What is no message is refused


@pytest.mark.parametrize(
    "packet",
    [
        b"hello",
        b"\xff\xfe",
        b"[" * 100_000,
        *(
            json.dumps(value).encode()
            for value in (
                [],
                {},
                {"type": ["note"]},
                {"type": None},
                {"type": "Note"},
                {"type": "inner", "words": [], "kind": "one"},
                NOTE | {"more": 1},
                {name: NOTE[name] for name in ("type", "number", "text")},
                *(NOTE | {"number": number} for number in ("1", True, -1, 1.0, None, [1])),
                NOTE | {"text": None},
                NOTE | {"text": 1},
                NOTE | {"right": 1},
                PARCEL,  # without its descriptor
            )
        ),
    ],
    ids=lambda packet: packet[:50].decode("latin-1"),
)
def test_what_is_no_message_is_refused(ends: Ends, packet: bytes):
    ours, theirs = ends
    ours.send(packet)
    with pytest.raises(PacketError):
        packets.receive(theirs, KNOWN)
    packets.send(ours, Note(1, "the next one", True))
    assert packets.receive(theirs, KNOWN) == Note(1, "the next one", True)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        (NOTE, 1),
        (PARCEL, 2),
        (PARCEL, 4),
        (LOAD, 3),
        (LOAD, 5),  # of which four arrive
        (PARCEL | {"index": 10}, 1),
        (PARCEL | {"more": 1}, 1),
        (PARCEL | {"inner": []}, 1),
        (PARCEL | {"inner": INNER | {"kind": "three"}}, 1),
        (PARCEL | {"inner": INNER | {"kind": 1}}, 1),
        (PARCEL | {"inner": INNER | {"words": "ab"}}, 1),
        (PARCEL | {"inner": INNER | {"words": ["a", 1]}}, 1),
        (PARCEL | {"inner": INNER | {"fd": 0}}, 1),
        ({"type": "stranger"}, 3),
    ],
)
def test_the_descriptors_of_a_refused_message_are_closed(
    ends: Ends, file: int, fields: dict[str, Any], count: int
):
    ours, theirs = ends
    socket.send_fds(ours, [json.dumps(fields).encode()], [file] * count)
    with pytest.raises(PacketError):
        packets.receive(theirs, KNOWN)


def test_descriptors_without_a_packet_are_closed(ends: Ends, file: int):
    ours, theirs = ends
    socket.send_fds(ours, [b""], [file])
    with pytest.raises(EOFError):
        packets.receive(theirs, KNOWN)


def test_a_message_of_another_conversation_is_refused_and_not_quoted(ends: Ends):
    ours, theirs = ends
    packets.send(ours, Stranger())
    with pytest.raises(PacketError, match="unknown") as caught:
        packets.receive(theirs, KNOWN)
    assert "stranger" not in str(caught.value)


def test_the_limit_on_size_holds_to_the_byte_on_both_sides(ends: Ends, file: int):
    ours, theirs = ends
    frame = len(packets.encode(Note(1, "", True))[0])
    longest = Note(1, "x" * (MAX_PACKET - frame), True)
    packets.send(ours, longest)
    assert packets.receive(theirs, KNOWN) == longest
    with pytest.raises(PacketError, match="128 KiB"):
        packets.send(ours, replace(longest, text=longest.text + "x"))
    packet = packets.encode(longest)[0]
    for larger in (packet + b" ", packet + b" " * 10_000):
        socket.send_fds(ours, [larger], [file])
        with pytest.raises(PacketError, match="too large"):
            packets.receive(theirs, KNOWN)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([*KNOWN]),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from([*NOTE, *PARCEL, *INNER, "fd"]), inner)
        ),
    ),
    st.integers(min_value=0, max_value=2),
)
def test_no_json_makes_anything_but_a_message_or_our_error(value: object, count: int):
    fds = list(range(count))
    try:
        message = packets.decode(json.dumps(value).encode(), fds, KNOWN)
    except PacketError:
        pass
    else:
        assert isinstance(message, Note | Parcel | Load)
    assert fds == list(range(count))
