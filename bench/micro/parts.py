"""Instructions of a server's worker, part by part of what it does, in one start under callgrind.

A start takes most of the time and, with its threads, has most of the noise; parts have neither. Callgrind
writes what it has counted, and begins at zero, whenever the function NEVER_CALLED is called; a file that
Python reads when it starts makes a signal call it. (Callgrind's own remote control needs ptrace, which
containers often deny.) The keeper and the supervisor work by the clock, so that what they do in a part says
nothing about it.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import instructions
from bench.compare import accounting

NEVER_CALLED = "ctermid"
MARK = signal.SIGRTMIN
QUIET = 0.2
"""Seconds without work after which a part is over."""
PATIENCE = 60.0
WORKER = "worker"
"""The end of the name of those that serve."""
CRYPTOGRAPHY = ("libcrypto", "libssl")
_PRELUDE = f"import os, signal\nsignal.signal({int(MARK)}, lambda *_: os.{NEVER_CALLED}())\n"


@dataclass(frozen=True, slots=True)
class Part:
    """Instructions of one part."""

    own: int
    """Everything outside OpenSSL."""
    cryptography: int


@dataclass(frozen=True, slots=True)
class Done:
    """What came of all parts."""

    parts: Mapping[str, Part]
    failed: Mapping[str, str]
    """Why others did not succeed, by their name."""


def counted(
    command: Sequence[str],
    ready: Callable[[], bool],
    parts: Mapping[str, Callable[[], object]],
    place: Path,
    environment: Mapping[str, str],
) -> Done:
    """What each of `parts` costs the workers of `command`, a server in Python; `place` is a new directory.

    A part that raises OSError or ValueError has failed. Raises CountError.
    """
    place.mkdir(mode=0o777)
    place.chmod(0o777)  # processes that have given up root write there
    (place / "sitecustomize.py").write_text(_PRELUDE)
    # Not among the arguments, which a server that renames itself writes over.
    rules = place / ".valgrindrc"
    rules.write_text(f"--dump-before={NEVER_CALLED}\n--callgrind-out-file={place}/%p\n")
    rules.chmod(0o644)
    found: dict[str, Part] = {}
    failed: dict[str, str] = {}

    def operate(_: int) -> None:
        workers = _workers(os.getpid())
        _mark(workers, place, 1)
        for number, (name, perform) in enumerate(parts.items(), 2):
            try:
                perform()
            except (OSError, ValueError) as error:
                failed[name] = f"{type(error).__name__}: {error}"
            part = _mark(workers, place, number)
            if name not in failed:
                found[name] = part

    server = instructions.Server(
        command,
        ready,
        operate,
        directory=place,
        environment={**environment, "PYTHONPATH": f"{place}:{environment['PYTHONPATH']}"},
    )
    instructions.whole_run(server, 1, by_object=True)
    return Done(found, failed)


def part(profile: Path) -> Part:
    """What a profile of callgrind's says."""
    cryptography, own = 0, 0
    for name, count in objects(profile).items():
        if name.startswith(CRYPTOGRAPHY):
            cryptography += count
        else:
            own += count
    return Part(own, cryptography)


def objects(profile: Path) -> Counter[str]:
    """Instructions by the name of the file that the code is in."""
    with profile.open(errors="replace") as lines:
        return instructions.by_object(lines)


# Private


def _workers(root: int) -> list[int]:
    """Processes below `root` that serve."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in accounting.tree(root)}
    found = [pid for pid, name in names.items() if name.endswith(WORKER)]
    if not found:
        raise instructions.CountError(f"no worker among {sorted(names.values())}")
    return found


def _mark(workers: Sequence[int], place: Path, number: int) -> Part:
    """End part `number` once it is quiet; what it cost."""
    found = []
    for pid in workers:
        instructions.settle(pid, QUIET, PATIENCE)
        os.kill(pid, MARK)
        profile = place / f"{pid}.{number}"
        deadline = time.monotonic() + PATIENCE
        while not _is_complete(profile):
            if time.monotonic() > deadline:
                raise instructions.CountError(f"callgrind wrote no profile of part {number}")
            time.sleep(0.01)
        instructions.settle(pid, QUIET, PATIENCE)  # what it does about the signal is in no part but its own
        found.append(part(profile))
    return Part(sum(each.own for each in found), sum(each.cryptography for each in found))


def _is_complete(profile: Path) -> bool:
    """The last lines are the sums."""
    if not profile.exists():
        return False
    with profile.open("rb") as file:
        file.seek(max(0, profile.stat().st_size - 200))
        return b"\ntotals:" in file.read()
