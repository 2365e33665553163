"""Two ends of a conversation, and the watch over descriptors that every test here is under."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Both ends, as the supervisor makes them; the one is as good as the other."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def file() -> Iterator[int]:
    """A descriptor to send; what is read from it is `content`."""
    fd = os.memfd_create("sent")
    os.write(fd, b"content")
    yield fd
    os.close(fd)


@pytest.fixture(autouse=True)
def _no_descriptor_is_lost(ends: Ends, file: int) -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def open_descriptors() -> list[str]:
    return sorted(name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}"))
