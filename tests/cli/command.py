"""Runs `botproxy` as people do: a process of its own, judged by what it prints and how it ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 30.0
"""Seconds after which a command is taken to hang."""


ACCOUNT = ("--user", "nobody") if os.geteuid() == 0 else ()
"""Options that root has to give to what serves."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left."""

    code: int
    out: str
    err: str


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """That of this process, without what would colour or configure a command."""
    ours = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {name: value for name, value in ours.items() if not name.startswith("BOTPROXY_")} | {
        **(changes or {})
    }


def botproxy(*arguments: str, env: Mapping[str, str] | None = None) -> Ended:
    """Run one command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "botproxy", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment(env),
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Running:
    """A command that goes on until it is told to end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.err = ""
        self.out = ""

    def port(self) -> int:
        """The port of its https address, once the operator log says that it serves."""
        return int(self.read_err(r"https://\S+?:(\d+)")[1])

    def read_err(self, pattern: str) -> re.Match[str]:
        """Read stderr until `pattern` is found in a line."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.err += line
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"ended without {pattern!r} on stderr:\n{self.err}")

    def read_out(self, pattern: str) -> re.Match[str]:
        """Read stdout until `pattern` is found in a line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.out += line
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"ended without {pattern!r} on stdout:\n{self.out}")

    def processes(self) -> set[int]:
        """Its own id and those of all its descendants."""
        found = {self.process.pid}
        parents = {int(path.name): _parent(path) for path in Path("/proc").iterdir() if path.name.isdecimal()}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def end(self, number: signal.Signals) -> int:
        """Send `number` and wait until it, and everything it started, has closed its output."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE)
        self.out += out
        self.err += err
        return self.process.returncode


@contextlib.contextmanager
def serving(*arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Start a command that goes on, in its own process group as a shell would; killed after `PATIENCE`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "botproxy", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(env),
        process_group=0,
    )
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        yield Running(process)
    finally:
        watchdog.cancel()
        # The whole group: a child that outlived a failed test would keep the pipes open.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def _parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None  # It ended while we looked.
