"""Supervisor and children understand each other's messages, and none but those."""

from __future__ import annotations

import os
import socket

import pytest

from botproxy.control import link, packets
from botproxy.control.link import (
    Failed,
    Joined,
    Ready,
    Reconfigure,
    Reconfigured,
    Recycle,
    Replace,
    Retire,
    Retired,
    Rotate,
    Rotated,
    Serve,
)
from botproxy.control.packets import PacketError
from tests.control.conftest import Ends


@pytest.mark.parametrize(
    "message",
    [
        Rotated(1.5, ""),
        Rotated(2.5, "no worker served"),
        Serve(),
        Reconfigured(1.5, True, ()),
        Reconfigured(1.5, False, ("listen: expected an address", "user: there is none")),
        Retire(True, 25000),
        Retire(False, 0),
    ],
    ids=str,
)
def test_a_child_hears_the_supervisor_and_not_the_other_way_round(ends: Ends, message: link.ToChild):
    ours, theirs = ends
    packets.send(ours, message)
    assert link.from_supervisor(theirs) == message
    packets.send(theirs, message)
    with pytest.raises(PacketError, match="unknown"):
        link.from_child(ours)


@pytest.mark.parametrize(
    "message",
    [
        Ready(),
        Failed(("a certificate is missing",)),
        Replace(4711, "it does not answer"),
        Rotate(),
        Reconfigure(),
        Recycle(),
        Retired(),
    ],
    ids=str,
)
def test_the_supervisor_hears_a_child_and_not_the_other_way_round(ends: Ends, message: link.ToSupervisor):
    ours, theirs = ends
    packets.send(theirs, message)
    assert link.from_child(ours) == message
    packets.send(ours, message)
    with pytest.raises(PacketError, match="unknown"):
        link.from_supervisor(theirs)


def test_a_worker_is_announced_with_the_end_of_its_channel(ends: Ends, file: int):
    ours, theirs = ends
    packets.send(ours, Joined(3, 4711, file))
    received = link.from_supervisor(theirs)
    assert isinstance(received, Joined)
    try:
        assert (received.slot, received.pid) == (3, 4711)
        assert os.pread(received.fd, 10, 0) == b"content"
    finally:
        os.close(received.fd)
    ours.send(b'{"type":"joined","slot":3,"pid":4711}')
    with pytest.raises(PacketError, match="descriptor is missing"):
        link.from_supervisor(theirs)


def test_nothing_is_none_and_the_end_is_an_error(ends: Ends):
    ours, theirs = ends
    assert link.from_supervisor(theirs) is None
    assert link.from_child(ours) is None
    ours.shutdown(socket.SHUT_RDWR)
    with pytest.raises(EOFError):
        link.from_supervisor(theirs)


def test_problems_fit_into_a_packet_whatever_they_are_about(ends: Ends):
    ours, theirs = ends
    packets.send(theirs, Failed(link.shown(["\U0001f600" * 5000] * 100)))
    received = link.from_child(ours)
    assert isinstance(received, Failed)
    assert len(received.problems) == 20
