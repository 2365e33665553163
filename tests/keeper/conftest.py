"""Fixtures of the keeper's tests: configurations of certificates on disk, channels."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from botproxy.config import schema
from botproxy.config.schema import Config

Configure = Callable[..., Config]


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """`configure(entry, ..., hosts=())`: a configuration that keeps its state below `tmp_path`."""

    def make(*entries: schema.Certificate, hosts: tuple[str, ...] = (), **keys: object) -> Config:
        return Config.model_validate(
            {
                "certificates": [entry.model_dump() for entry in entries],
                "routes": [{"hosts": hosts}],
                "state_dir": str(tmp_path / "state"),
                **keys,
            }
        )

    return make


@pytest.fixture
def channel_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The keeper's end and the worker's, as the supervisor makes them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs
