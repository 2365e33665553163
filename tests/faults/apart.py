"""A thread with a network or a view of the files of its own, which its children inherit.

So a test may cut connections and change names without touching the machine it runs on.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import program

_NEW_FILES = 0x00020000
_NEW_NETWORK = 0x40000000


class Namespaces:
    """What can be done in there."""

    def bind(self, file: Path, where: Path) -> None:
        """Have `file` stand in the place of `where`."""
        subprocess.run(["mount", "--bind", file, where], check=True)

    def drop(self, port: int) -> None:
        """Lose all packets of connections that this port is an end of, in both directions."""
        for side in ("--sport", "--dport"):
            command = [program("iptables"), "-I", "INPUT", "-p", "tcp", side, str(port), "-j", "DROP"]
            subprocess.run(command, check=True)


def apart(body: Callable[[Namespaces], None], *, network: bool = False, files: bool = False) -> None:
    """Run `body` in a thread of that kind; skips the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root can make namespaces")
    if network:
        program("iptables")
    failures: list[BaseException] = []

    def run() -> None:
        try:
            _enter(network=network, files=files)
            body(Namespaces())
        except BaseException as error:  # noqa: BLE001 raised again below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _enter(*, network: bool, files: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare((_NEW_NETWORK if network else 0) | (_NEW_FILES if files else 0)) != 0:
        reason = os.strerror(ctypes.get_errno())
        if os.environ.get("TESTS_SKIP_NOTHING"):
            pytest.fail(f"no namespaces: {reason}")
        pytest.skip(f"no namespaces: {reason}")
    if files:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    if network:
        ip = shutil.which("ip") or program("ip")
        subprocess.run([ip, "link", "set", "lo", "up"], check=True)
