"""Keeper and worker understand each other's messages, and none but those."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from typing import Any

import pytest

from botproxy.control import channel, packets
from botproxy.control.channel import Commit, Expect, Expecting, Met, Prepare, Prepared, Refused, Serving
from botproxy.control.packets import PacketError
from botproxy.tls.context import Handed
from tests.control.conftest import Ends

PREPARE: dict[str, Any] = {
    "type": "prepare",
    "set": "ab",
    "index": 0,
    "count": 1,
    "certificate": {"names": ["a.test"], "key_type": "rsa", "fingerprint": "ab", "hsts": True},
}


def handed(fd: int, *names: str) -> Handed:
    return Handed(names, "ecdsa", "ab" * 32, True, fd)


@pytest.mark.parametrize("message", [Commit("ab"), Expect(()), Expect((40001, 40002))], ids=str)
def test_the_worker_hears_the_keeper_and_not_the_other_way_round(ends: Ends, message: channel.ToWorker):
    ours, theirs = ends
    packets.send(ours, message)
    assert channel.from_keeper(theirs) == message
    packets.send(theirs, message)
    with pytest.raises(PacketError, match="unknown"):
        channel.from_worker(ours)


@pytest.mark.parametrize(
    "message",
    [Prepared("ab"), Refused("ab", "därum"), Serving("ab", ("01", "23")), Expecting((40001,)), Met(40001)],
    ids=str,
)
def test_the_keeper_hears_the_worker_and_not_the_other_way_round(ends: Ends, message: channel.ToKeeper):
    ours, theirs = ends
    packets.send(theirs, message)
    assert channel.from_worker(ours) == message
    packets.send(ours, message)
    with pytest.raises(PacketError, match="unknown"):
        channel.from_keeper(theirs)


def test_a_certificate_arrives_with_its_file(ends: Ends, file: int):
    ours, theirs = ends
    sent = Prepare("ab", 1, 3, handed(file, "a.test", "*.b.test"))
    packets.send(ours, sent)
    received = channel.from_keeper(theirs)
    assert isinstance(received, Prepare)
    fd = received.certificate.fd
    try:
        assert received == replace(sent, certificate=replace(sent.certificate, fd=fd))
        assert os.pread(fd, 10, 0) == b"content"
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "changes",
    [
        {"index": 1},
        {"count": 0},
        {"certificate": PREPARE["certificate"] | {"key_type": "dsa"}},
        {"certificate": PREPARE["certificate"] | {"hsts": 1}},
    ],
    ids=str,
)
def test_a_certificate_that_cannot_be_is_refused_with_its_file(
    ends: Ends, file: int, changes: dict[str, Any]
):
    ours, theirs = ends
    socket.send_fds(ours, [json.dumps(PREPARE | changes).encode()], [file])
    with pytest.raises(PacketError):
        channel.from_keeper(theirs)


def test_the_index_of_a_certificate_is_below_their_count(file: int):
    with pytest.raises(ValueError, match="index"):
        Prepare("ab", 2, 2, handed(file))


def test_a_certificate_of_2000_names_fits_and_a_larger_one_is_refused_by_the_sender(ends: Ends, file: int):
    ours, theirs = ends
    many = handed(file, *(f"{number:04}.{'x' * 55}" for number in range(2000)))
    packets.send(ours, Prepare("ab" * 8, 99, 100, many))
    received = channel.from_keeper(theirs)
    assert isinstance(received, Prepare)
    os.close(received.certificate.fd)
    assert received.certificate.names == many.names
    with pytest.raises(PacketError, match="too many hosts"):
        packets.send(ours, Prepare("ab" * 8, 0, 1, replace(many, names=many.names * 2)))


def test_nothing_is_none_and_the_end_is_an_error(ends: Ends):
    ours, theirs = ends
    assert channel.from_keeper(theirs) is None
    assert channel.from_worker(ours) is None
    theirs.shutdown(socket.SHUT_RDWR)
    with pytest.raises(EOFError):
        channel.from_worker(ours)
