"""Messages arrive as they were sent, anything else is refused, and no descriptor is lost."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from botproxy.keeper import channel
from botproxy.keeper.channel import ChannelError, Commit, Hello, Message, Prepare, Prepared, Refused, Serving
from botproxy.tls.context import Handed, sealed_memfd

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def handed() -> Iterator[Handed]:
    fd = sealed_memfd(b"pem")
    yield Handed(("a.test", "*.b.test"), "ecdsa", "ab" * 32, True, fd)
    os.close(fd)


@pytest.fixture(autouse=True)
def _no_descriptor_is_lost(handed: Handed, channel_pair: Pair) -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def open_descriptors() -> list[str]:
    return sorted(name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}"))


def send_for_ever(sock: socket.socket) -> None:
    while True:
        channel.send(sock, Refused(7, 1, "x" * 10_000))


def prepared_fields(**changes: Any) -> dict[str, Any]:
    fields = {
        "type": "prepare",
        "pid": 7,
        "generation": 1,
        "index": 0,
        "count": 1,
        "names": ["a.test"],
        "key_type": "rsa",
        "fingerprint": "ab",
        "hsts": True,
    }
    return fields | changes


@pytest.mark.parametrize(
    "message",
    [Hello(7), Prepared(7, 2), Refused(7, 2, "därum"), Commit(7, 2), Serving(7, 2, ("ab", "cd"))],
    ids=lambda message: type(message).__name__,
)
def test_a_message_arrives_as_it_was_sent(channel_pair: Pair, message: Message):
    ours, theirs = channel_pair
    channel.send(ours, message)
    assert channel.receive(theirs) == message


def test_a_certificate_arrives_with_its_file(channel_pair: Pair, handed: Handed):
    ours, theirs = channel_pair
    sent = Prepare(7, 2, 1, 3, handed)
    channel.send(ours, sent)
    received = channel.receive(theirs)
    assert isinstance(received, Prepare)
    fd = received.certificate.fd
    try:
        assert received == replace(sent, certificate=replace(handed, fd=fd))
        assert fd != handed.fd
        assert os.pread(fd, 10, 0) == b"pem"
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_none_means_that_nothing_is_there_and_the_end_is_an_error(channel_pair: Pair):
    ours, theirs = channel_pair
    assert channel.receive(theirs) is None
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        channel.receive(theirs)


@pytest.mark.parametrize(
    "packet",
    [
        b"hello",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"type":"stop","pid":1}',
        b'{"type":["hello"],"pid":1}',
        b'{"type":"hello"}',
        b'{"type":"hello","pid":"1"}',
        b'{"type":"hello","pid":true}',
        b'{"type":"hello","pid":-1}',
        b'{"type":"hello","pid":1.0}',
        b'{"type":"hello","pid":1,"root":true}',
        b'{"type":"commit","pid":1}',
        b'{"type":"serving","pid":1,"generation":1,"fingerprints":"ab"}',
        b'{"type":"serving","pid":1,"generation":1,"fingerprints":[1]}',
        b'{"type":"refused","pid":1,"generation":1,"reason":null}',
        json.dumps(prepared_fields()).encode(),
    ],
    ids=lambda packet: packet[:50].decode("latin-1"),
)
def test_what_is_no_message_is_refused(channel_pair: Pair, packet: bytes):
    ours, theirs = channel_pair
    ours.send(packet)
    with pytest.raises(ChannelError):
        channel.receive(theirs)
    assert channel.receive(theirs) is None


@pytest.mark.parametrize(
    ("fields", "fds"),
    [
        ({"type": "hello", "pid": 1}, 1),
        (prepared_fields(), 2),
        (prepared_fields(), 9),
        (prepared_fields(index=1), 1),
        (prepared_fields(key_type="dsa"), 1),
        (prepared_fields(hsts=1), 1),
        (prepared_fields(names=["a.test", 1]), 1),
        (prepared_fields(more=1), 1),
        ({"type": "stop"}, 3),
    ],
)
def test_descriptors_of_a_refused_message_are_closed(
    channel_pair: Pair, handed: Handed, fields: dict[str, Any], fds: int
):
    ours, theirs = channel_pair
    socket.send_fds(ours, [json.dumps(fields).encode()], [handed.fd] * fds)
    with pytest.raises(ChannelError):
        channel.receive(theirs)


def test_a_message_of_2000_names_fits_and_a_larger_one_is_refused_on_both_sides(
    channel_pair: Pair, handed: Handed
):
    ours, theirs = channel_pair
    many = replace(handed, names=tuple(f"{number:04}.{'x' * 55}" for number in range(2000)))
    channel.send(ours, Prepare(7, 1, 0, 1, many))
    received = channel.receive(theirs)
    assert isinstance(received, Prepare)
    assert received.certificate.names == many.names
    os.close(received.certificate.fd)
    with pytest.raises(ChannelError, match="128 KiB"):
        channel.send(ours, Prepare(7, 1, 0, 1, replace(many, names=many.names * 2)))
    socket.send_fds(ours, [b" " * (channel.MAX_MESSAGE + 1)], [handed.fd])
    with pytest.raises(ChannelError, match="too large"):
        channel.receive(theirs)


def test_a_full_channel_says_so(channel_pair: Pair):
    ours, _ = channel_pair
    with pytest.raises(BlockingIOError):
        send_for_ever(ours)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["type", "pid", "generation"]), inner)
        ),
    )
)
def test_no_json_makes_anything_but_our_error(value: object):
    try:
        channel.decode(json.dumps(value).encode(), [])
    except ChannelError:
        pass
