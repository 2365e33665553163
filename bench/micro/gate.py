"""Does this working tree cost more instructions than the commit it started from?

Run `python -m bench.micro.gate [--base COMMIT]` (two minutes), or `make gate`. Exit codes: 0 it does not, or
nothing could be compared, which is then said; 1 it does; 2 usage. Where there is no history, as in a shallow
clone, it is compared with `baseline.json`, if that holds the very same build of everything that is counted;
`--write-baseline` puts this tree and this build there.

Absolute times are nowhere: two trees are counted on the same machine, by the same programs, one after the
other. A cost that is meant is accepted by a trailer in the message of the commit that brings it,
`Costs: request fields +5%, because ...`, for as long as that commit is not on the main branch; without
history by writing the baseline anew.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import instructions
from bench.micro import counted, served, trees, verdict

BASELINE = Path(__file__).parent / "baseline.json"
PROCESSOR = ("adx", "aes", "avx", "avx2", "bmi2", "sha_ni")
"""What OpenSSL asks of a processor before it chooses its code, as far as valgrind lets it know."""
LIBRARIES = ("click", "cryptography", "h11", "pydantic", "pydantic_core", "pyyaml", "uvloop", "watchfiles")


@dataclass(frozen=True, slots=True)
class Costs:
    """What one tree costs."""

    workloads: Mapping[str, float]
    """Instructions by name."""
    broken: tuple[str, ...] = ()

    def least(self, other: Costs) -> Costs:
        """The lesser count of each workload, those that are broken in both."""
        both = {**self.workloads, **other.workloads}
        least = {
            name: min(each.workloads.get(name, cost) for each in (self, other)) for name, cost in both.items()
        }
        return Costs(least, tuple(name for name in self.broken if name in other.broken))


def main(named: str | None, write_baseline: bool) -> int:
    if not instructions.is_here():
        print("gate: SKIPPED, nothing was compared: valgrind is not installed")
        return 1 if os.environ.get("TESTS_SKIP_NOTHING") else 0
    try:
        base = trees.base_commit(named)
    except LookupError as error:
        print(f"gate: {error}", file=sys.stderr)
        return 2
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gate-") as name:
        place = Path(name)
        place.chmod(0o755)
        if write_baseline:
            tree = trees.copy_tree(place)
            _write(_count(tree).least(_count(tree)))
            code = 0
        else:
            code = _with_baseline(place) if base is None else _with_commit(base, place)
    print(f"gate: {time.monotonic() - began:.0f} s")
    return code


def build() -> dict[str, Any]:
    """Everything but botproxy that decides how many instructions there are."""
    flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    return {
        "python": sys.version,
        "openssl": ssl.OPENSSL_VERSION,
        "libc": " ".join(platform.libc_ver()),
        "valgrind": instructions.version(),
        "machine": platform.machine(),
        "processor": [flag for flag in PROCESSOR if flag in flags],
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def judge(old: Callable[[], Costs], new: Callable[[], Costs], accepted: Mapping[str, float]) -> int:
    """The exit code. What fails is counted once more: a busy machine adds to a count, and takes nothing."""
    before, after = old(), new()
    failed = _report(before, after, accepted)
    if failed:
        print(f"gate: counted again, because of {', '.join(failed)}", flush=True)
        before, after = before.least(old()), after.least(new())
        failed = _report(before, after, accepted)
    if failed:
        print(f"gate: FAILED: {', '.join(failed)}")
        return 1
    print(f"gate: nothing costs {verdict.TOLERANCE * 100:g}% more, or more than is accepted")
    return 0


# Private


def _with_commit(base: str, place: Path) -> int:
    if not trees.is_changed(base):
        print(f"gate: botproxy is that of {base[:12]}, nothing to compare")
        return 0
    print(f"gate: instructions at {base[:12]}, and now", flush=True)
    old, new = trees.copy_base(base, place), trees.copy_tree(place)
    accepted = verdict.accepted(trees.accepted_since(base))
    return judge(lambda: _count(old), lambda: _count(new), accepted)


def _with_baseline(place: Path) -> int:
    here = build()
    known = [Costs(entry["workloads"]) for entry in _baseline() if entry["build"] == here]
    if not known:
        print("gate: SKIPPED, nothing was compared: there is no history, and no baseline of this build:")
        print(json.dumps(here, indent=1))
        return 0
    print("gate: there is no history; instructions in the baseline of this build, and now", flush=True)
    new = trees.copy_tree(place)
    return judge(lambda: known[0], lambda: _count(new), {})


def _count(directory: Path) -> Costs:
    """All workloads over the botproxy in `directory`; those that fail there are named."""
    environment = {"PYTHONPATH": f"{directory}:{trees.ROOT}"}
    workloads: dict[str, float] = {}
    broken: list[str] = []
    try:
        stages = counted.counted(environment)
        workloads |= stages.each
        broken += stages.failed
    except instructions.CountError as error:
        print(f"gate: the stages in {directory.name}: {error}")
        broken.append("stages")
    try:
        workloads |= served.counted(environment)
    except (instructions.CountError, OSError, ValueError) as error:
        print(f"gate: serving in {directory.name}: {error}")
        broken.append("served")
    return Costs(workloads, tuple(broken))


def _report(before: Costs, after: Costs, accepted: Mapping[str, float]) -> list[str]:
    """Prints every workload; the names of those that fail."""
    compared = verdict.compare(before.workloads, after.workloads, accepted, after.broken)
    print(f"{'':28}{'base':>14}{'now':>14}")
    for each in compared:
        print(verdict.row(each), flush=True)
    return [each.name for each in compared if each.failed]


def _baseline() -> list[dict[str, Any]]:
    return list(json.loads(BASELINE.read_text())) if BASELINE.exists() else []


def _write(costs: Costs) -> None:
    here = build()
    entry = {"build": here, "workloads": {name: round(cost) for name, cost in costs.workloads.items()}}
    entries = [each for each in _baseline() if each["build"] != here]
    BASELINE.write_text(json.dumps([*entries, entry], indent=1) + "\n")
    print(f"gate: wrote {len(costs.workloads)} workloads of this build to {BASELINE.relative_to(trees.ROOT)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.micro.gate", description=__doc__)
    parser.add_argument("--base", metavar="COMMIT", help="compare with this commit")
    parser.add_argument("--write-baseline", action="store_true", help="for where there is no history")
    chosen = parser.parse_args()
    sys.exit(main(chosen.base, chosen.write_baseline))
