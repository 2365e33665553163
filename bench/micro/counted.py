"""Instructions of each stage, counted in one run under valgrind.

Run as a program it is what is counted: it makes the stages once, and forks for each of them and each of two
lengths a child that repeats it. (I(3n) - I(n)) / 2n is free of everything but the stage. As a module it
starts that program, over whichever botproxy it is told to use.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from bench import instructions
from bench.micro.stages import Stage, stages

CALLS = {"handshake, both sides": 10}
"""Of the shorter length; OTHERWISE for those not named."""
OTHERWISE = 300


@dataclass(frozen=True, slots=True)
class Counted:
    """What could be counted."""

    each: Mapping[str, float]
    """Instructions of one call, by stage."""
    failed: tuple[str, ...]
    """Stages that do not work with that botproxy."""


def counted(environment: Mapping[str, str]) -> Counted:
    """All stages, with botproxy from where `environment` leads Python. Raises CountError."""
    command = (sys.executable, "-P", "-m", "bench.micro.counted")
    said, counts = instructions.counted(command, environment)
    each, failed = {}, []
    for name, (calls, short, long) in json.loads(said).items():
        if calls:
            each[name] = (counts[long] - counts[short]) / (2 * calls)
        else:
            failed.append(name)
    return Counted(each, tuple(failed))


# Private


def _main() -> None:
    """Prints, for each stage, calls of the shorter run (0: it failed), and the ids of both processes."""
    result = {}
    for name, stage in stages().items():
        calls = CALLS.get(name, OTHERWISE)
        short, short_works = _fork(stage, calls)
        long, long_works = _fork(stage, 3 * calls)
        result[name] = (calls if short_works and long_works else 0, short, long)
    print(json.dumps(result), flush=True)


def _fork(stage: Stage, calls: int) -> tuple[int, bool]:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for _ in range(calls):
                stage()
            code = 0
        finally:
            os._exit(code)  # also past an exception: nothing of the parent may be run twice
    _, status = os.waitpid(pid, 0)
    return pid, status == 0


if __name__ == "__main__":
    _main()
