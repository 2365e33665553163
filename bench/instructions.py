"""How many user-space instructions an operation costs a server, all of its processes together.

A server is run under valgrind twice, from start to end: it serves n operations once, 3n the other time,
and (I(3n) - I(n)) / 2n is what one costs. Start, warm-up and end are in both and cancel out, as does what
a forked process inherits of its parent's count. Unlike seconds, instructions do not drift with the
temperature and the neighbours of a machine. What they leave out: the kernel's work, and how long memory
is waited for.

The tool is cachegrind without its cache simulation, which counts what callgrind counts in half the time;
callgrind where it is asked whose instructions they are: those of the program or of which of its libraries.
Says nothing about what a server or an operation is: `bench.micro.served` is an example of both.

    cost = per_operation(Server(("nginx", "-c", str(file)), ready, serve), 100)
    print(cost.each, cost.short, cost.long)
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.compare import accounting

VALGRIND = "valgrind"
TOTALS, OBJECTS = "cachegrind", "callgrind"
START_PATIENCE = 120.0
STOP_PATIENCE = 60.0
"""Seconds; a server is thirty to fifty times as slow as without valgrind."""
SETTLED = 0.5
"""Seconds without work after which a tree has begun."""

_COUNT = re.compile(r"^==(\d+)== I +refs: +([\d,]+)$", re.MULTILINE)
_OBJECT = re.compile(r"c?ob=(\(\d+\))(?: (.*))?")


class CountError(Exception):
    """There is no count that could be believed; says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """Something to be counted."""

    command: Sequence[str]
    """What to run; it stays in the foreground and ends with SIGTERM."""
    ready: Callable[[], bool]
    """Whether it serves; asked until it does."""
    operate: Callable[[int], None]
    """Performs so many operations one after the other; raises when one goes wrong."""
    prepare: Callable[[], object] = lambda: None
    """Before each run: puts what the server keeps on disk back, so that both starts are alike."""
    directory: Path | None = None
    """Where it is run."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What is added to ours."""


@dataclass(frozen=True, slots=True)
class Run:
    """Instructions of a server from its start to its end."""

    operations: int
    processes: Mapping[str, int]
    """By the name that `ps` shows, those that bear the same together."""
    seconds: float
    objects: Mapping[str, int] = field(default_factory=dict)
    """By the file that the code is in: the program, a library; if they were asked for."""

    @property
    def total(self) -> int:
        return sum(self.processes.values())


@dataclass(frozen=True, slots=True)
class Cost:
    """What one operation costs, and the two runs that say so."""

    short: Run
    long: Run

    @property
    def each(self) -> float:
        """Instructions of one operation, in all processes."""
        return (self.long.total - self.short.total) / (self.long.operations - self.short.operations)

    @property
    def objects(self) -> dict[str, float]:
        """The same by the file that the code is in, the most first."""
        operations = self.long.operations - self.short.operations
        each = {
            name: (count - self.short.objects.get(name, 0)) / operations
            for name, count in self.long.objects.items()
        }
        return dict(sorted(each.items(), key=lambda one: -one[1]))

    def as_json(self) -> dict[str, Any]:
        """Everything measured."""
        runs = [
            {"operations": run.operations, "processes": dict(run.processes), "seconds": round(run.seconds, 1)}
            for run in (self.short, self.long)
        ]
        objects = {name: round(count) for name, count in self.objects.items() if round(count)}
        return {"instructions": round(self.each), "objects": objects, "runs": runs}


def is_here() -> bool:
    """Whether anything can be counted on this machine."""
    return shutil.which(VALGRIND) is not None


def version() -> str:
    """Of what counts."""
    return subprocess.run((VALGRIND, "--version"), capture_output=True, text=True, check=True).stdout.strip()


def per_operation(server: Server, count: int, *, by_object: bool = False) -> Cost:
    """What an operation costs `server`, from runs of `count` and three times as many.

    `by_object`: also where the code is, which takes twice the time. Raises CountError, and whatever
    `server.operate` does.
    """
    short, long = (whole_run(server, each, by_object=by_object) for each in (count, 3 * count))
    return Cost(short, long)


def whole_run(server: Server, count: int, *, by_object: bool = False) -> Run:
    """Start `server`, have it serve `count` operations, end it."""
    tool = OBJECTS if by_object else TOTALS
    server.prepare()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="instructions-") as name:
        directory = Path(name)
        os.chmod(directory, 0o777)  # processes that have given up root write their counts there
        with open(directory / "said", "wb") as said:
            process = subprocess.Popen(
                (VALGRIND, f"--tool={tool}", *server.command),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=server.directory,
                env={**_environment(directory, tool), **server.environment},
            )
        try:
            _await(process, server.ready, directory / "said")
            settle(process.pid)  # one that is told to end while it begins leaves no count
            before = _family(process.pid)
            server.operate(count)
            names = _names(_family(process.pid), Path(server.command[0]).name)
            if gone := before - names.keys():
                raise CountError(f"processes ended while they were counted: {sorted(gone)}")
        finally:
            _end(process)
        counts = _counts(directory)
        objects = _objects(directory, names)
    if missing := names.keys() - counts.keys():
        raise CountError(f"no count of: {sorted(names[pid] for pid in missing)}")
    processes: Counter[str] = Counter()
    for pid, called in names.items():
        processes[called] += counts[pid]
    return Run(count, dict(processes), time.monotonic() - began, objects)


def counted(
    command: Sequence[str], environment: Mapping[str, str] | None = None
) -> tuple[str, dict[int, int]]:
    """What `command` prints, and the instructions of it and each of its children by their ids.

    It ends by itself; raises CountError when it fails.
    """
    with tempfile.TemporaryDirectory(prefix="instructions-") as name:
        done = subprocess.run(
            (VALGRIND, f"--tool={TOTALS}", *command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**_environment(Path(name), TOTALS), **(environment or {})},
            check=False,
        )
        if done.returncode:
            raise CountError(f"ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        return done.stdout, _counts(Path(name))


def settle(root: int, quiet: float = SETTLED, patience: float = START_PATIENCE) -> None:
    """Wait until nobody of the tree has been at work for `quiet` seconds, or `patience` is over."""
    deadline = time.monotonic() + patience
    before = -1.0
    while (used := accounting.ticks(root)) != before and time.monotonic() < deadline:
        before = used
        time.sleep(quiet)


def by_object(lines: Iterable[str]) -> Counter[str]:
    """What a profile in callgrind's format says (Valgrind's manual, "Callgrind Format Specification")."""
    names: dict[str, str] = {}
    found: Counter[str] = Counter()
    here, is_call = "", False
    for line in lines:
        if match := _OBJECT.match(line):
            number, name = match.groups()
            if name:
                names[number] = name.rpartition("/")[2]
            if line.startswith("ob="):
                here = names[number]
        elif line.startswith("calls="):
            is_call = True  # the next line is what the called function cost
        elif line[:1].isdigit() or line[:1] in "+-*":
            if not is_call:
                found[here] += int(line.split()[1])
            is_call = False
    return found


# Private


def _environment(directory: Path, tool: str) -> dict[str, str]:
    """Ours, and what valgrind is told; not by its arguments, because a program may write over those."""
    file = f"{directory}/%p.objects" if tool == OBJECTS else "/dev/null"
    options = f"--cache-sim=no --{tool}-out-file={file} --trace-children=yes --log-file={directory}/%p"
    return {**os.environ, "VALGRIND_OPTS": options, "PYTHONHASHSEED": "0"}


def _await(process: subprocess.Popen[bytes], ready: Callable[[], bool], said: Path) -> None:
    deadline = time.monotonic() + START_PATIENCE
    while not ready():
        if (code := process.poll()) is not None:
            raise CountError(f"ended with {code} before it served; it said: {_last(said)}")
        if time.monotonic() > deadline:
            raise CountError(f"does not serve after {START_PATIENCE:g} s; it said: {_last(said)}")
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    """In order, so that every process writes its count; by force when it does not end."""
    family = _family(process.pid)
    process.terminate()
    try:
        process.wait(STOP_PATIENCE)
    except subprocess.TimeoutExpired:
        for pid in family:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended by itself
        process.wait()
        raise CountError(f"did not end within {STOP_PATIENCE:g} s") from None


def _last(said: Path) -> str:
    return " ".join(said.read_text(errors="replace").split())[-500:]


def _family(root: int) -> set[int]:
    """`root` and all its descendants that are alive."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if state != "Z":
            parents[int(status.parent.name)] = int(parent)
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _names(pids: set[int], program: str) -> dict[int, str]:
    """What each calls itself; `program` where only valgrind's own name shows."""
    names = {}
    for pid in pids:
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended just now
        names[pid] = program if name.startswith((TOTALS, OBJECTS, "valgrind", "memcheck")) else name
    return names


def _counts(directory: Path) -> dict[int, int]:
    """Of every process that has ended, by its id; forked ones write into the file of their parent."""
    text = "".join(log.read_text(errors="replace") for log in directory.glob("[0-9]*[0-9]"))
    return {int(pid): int(count.replace(",", "")) for pid, count in _COUNT.findall(text)}


def _objects(directory: Path, pids: Iterable[int]) -> dict[str, int]:
    """By the name of the file that the code is in, of these processes together, if it was asked for."""
    found: Counter[str] = Counter()
    for pid in pids:
        file = directory / f"{pid}.objects"
        if file.exists():
            with file.open(errors="replace") as lines:
                found.update(by_object(lines))
    return dict(found)
