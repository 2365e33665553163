"""Giving up root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from botproxy.errors import ConfigError
from botproxy.server import privileges
from botproxy.server.privileges import connections_within, drop, worker_account

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give up")


def in_child(body: Callable[[], int]) -> int:
    """Exit status of a child process that runs `body`."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(body())
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@as_root
def test_root_has_to_name_the_account_that_serves() -> None:
    with pytest.raises(ConfigError, match="expected the account that serves"):
        worker_account(None)


@as_root
def test_root_is_no_account_for_workers() -> None:
    with pytest.raises(ConfigError, match="without root rights"):
        worker_account("root")


@as_root
def test_an_unknown_account_is_named_with_the_way_to_make_one() -> None:
    with pytest.raises(ConfigError, match='found none named "no-such-user"'):
        worker_account("no-such-user")


@as_root
def test_after_the_drop_there_is_no_way_back() -> None:
    def body() -> int:
        drop(worker_account("nobody"))
        status = Path("/proc/self/status").read_text()
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        good = (
            facts["Uid"].split() == [str(os.getuid())] * 4
            and os.getuid() != 0
            and os.getgroups() == []
            and int(facts["CapEff"], 16) == 0
            and facts["NoNewPrivs"] == "1"
        )
        return 0 if good else 1

    assert in_child(body) == 0


def test_connections_leave_room_for_the_other_side_and_for_ourselves() -> None:
    assert connections_within(1024, 1) == (1024 - privileges.RESERVED_DESCRIPTORS) // 2
    assert connections_within(1024, 3) == (1024 - privileges.RESERVED_DESCRIPTORS) // 4
    assert connections_within(10, 1) == 1
