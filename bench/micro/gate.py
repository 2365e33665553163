"""Does this working tree cost more instructions than when its costs were last accepted?

Run `python -m bench.micro.gate [--base COMMIT]` (three minutes), or `make gate`. Which commit that is
says `trees`. Exit codes: 0 it does not, or there is nothing at all to compare it with, which is then said;
1 it does, or a workload could not be compared; 2 usage. Where there is no history, as in a shallow clone, it
is compared with `baseline.json`, if that holds the very same build of everything that is counted; so is a
workload that does not work in the other commit. `--write-baseline` puts this tree and this build there.

Absolute times are nowhere: two trees are counted on the same machine, by the same programs, one after the
other. A cost that is meant is accepted by a trailer in the message of a commit since the one that is compared
with, `Costs: request fields +5%, because ...`, or `Costs: request fields anew, because ...` for one that has
nothing to be compared with; or by writing the baseline anew and committing that.
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
NO_BASE = """\
gate: what has no base does not work in the other commit, and the baseline of this build does not know it.
gate: To accept what it costs: the trailer "Costs: NAME anew, because ..." in the message of a commit
gate: ("stages anew", "served anew": all of them), or `make gate-baseline` and a commit of what it writes."""
LIBRARIES = ("click", "cryptography", "h11", "pydantic", "pydantic_core", "pyyaml", "uvloop", "watchfiles")


@dataclass(frozen=True, slots=True)
class Costs:
    """What one tree costs."""

    workloads: Mapping[str, float]
    """Instructions by name."""
    broken: tuple[str, ...] = ()
    """Of those that do not work; `stages` or `served`: all of them."""

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
            write(_count(tree).least(_count(tree)))
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


def judge(
    old: Callable[[], Costs],
    new: Callable[[], Costs],
    accepted: Mapping[str, float],
    known: Mapping[str, float] | None = None,
) -> int:
    """The exit code. What fails is counted once more: a busy machine adds to a count, and takes nothing.

    `known`: what the baseline of this build says, for those that the old tree has no count of.
    """
    before, after = old(), new()
    compared = _report(before, after, accepted, known or {})
    if failed := [each.name for each in compared if each.failed]:
        print(f"gate: counted again, because of {', '.join(failed)}", flush=True)
        before, after = before.least(old()), after.least(new())
        compared = _report(before, after, accepted, known or {})
    said = verdict.summary(compared)
    if failed := [each.name for each in compared if each.failed]:
        if any(each.failed and each.base is None and each.tree is not None for each in compared):
            print(NO_BASE)
        print(f"gate: FAILED: {', '.join(failed)}; {said}")
        return 1
    print(f"gate: nothing costs {verdict.TOLERANCE * 100:g}% more, or more than is accepted; {said}")
    return 0


def write(costs: Costs) -> None:
    """Put what this tree costs into the baseline, as this build's."""
    if costs.broken:
        raise SystemExit(f"gate: nothing was written, these do not work: {', '.join(costs.broken)}")
    here = build()
    entry = {"build": here, "workloads": {name: round(cost) for name, cost in costs.workloads.items()}}
    # Those that were counted in another way are no use, and could be mistaken for some.
    alike = [each for each in _baseline() if each["workloads"].keys() == entry["workloads"].keys()]
    entries = [each for each in alike if each["build"] != here]
    BASELINE.write_text(json.dumps([*entries, entry], indent=1) + "\n")
    print(f"gate: wrote {len(costs.workloads)} workloads of this build to {BASELINE.relative_to(trees.ROOT)}")


# Private


def _with_commit(base: str, place: Path) -> int:
    if not trees.is_changed(base):
        print(f"gate: botproxy is that of {base[:12]}, nothing to compare")
        return 0
    print(f"gate: instructions at {base[:12]}, and now", flush=True)
    old, new = trees.copy_base(base, place), trees.copy_tree(place)
    accepted = verdict.accepted(trees.accepted_since(base))
    known = _known() or Costs({})
    return judge(lambda: _count(old), lambda: _count(new), accepted, known.workloads)


def _with_baseline(place: Path) -> int:
    known = _known()
    if known is None:
        print("gate: SKIPPED, NOTHING WAS COMPARED: there is no history, and no baseline of this build:")
        print(json.dumps(build(), indent=1))
        return 0
    print("gate: there is no history; instructions in the baseline of this build, and now", flush=True)
    new = trees.copy_tree(place)
    return judge(lambda: known, lambda: _count(new), {})


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
        found, failed = served.counted(environment)
        workloads |= found
        broken += failed
        for each, why in failed.items():
            print(f"gate: {each} in {directory.name}: {why}")
    except (instructions.CountError, OSError, ValueError) as error:
        print(f"gate: serving in {directory.name}: {error}")
        broken.append("served")
    return Costs(workloads, tuple(broken))


def _report(
    before: Costs, after: Costs, accepted: Mapping[str, float], known: Mapping[str, float]
) -> list[verdict.Compared]:
    """Prints every workload, and returns them."""
    base = dict(before.workloads)
    for name in after.workloads:
        if name not in base and name in known:
            base[name] = known[name]
            print(f"gate: {name} has no count in the base; it is compared with the baseline of this build")
    compared = verdict.compare(base, after.workloads, accepted, _broken(base, after))
    print(f"{'':{verdict.WIDTH}}{'base':>14}{'now':>14}")
    for each in compared:
        print(verdict.row(each), flush=True)
    return compared


def _broken(base: Mapping[str, float], after: Costs) -> list[str]:
    """What does not work now, and what vanished: it has a cost in the base and none here."""
    lost = [name for name in base if name not in after.workloads and name not in after.broken]
    return [*after.broken, *lost]


def _known() -> Costs | None:
    """What the baseline says of this build."""
    here = build()
    return next((Costs(entry["workloads"]) for entry in _baseline() if entry["build"] == here), None)


def _baseline() -> list[dict[str, Any]]:
    return list(json.loads(BASELINE.read_text())) if BASELINE.exists() else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.micro.gate", description=__doc__)
    parser.add_argument("--base", metavar="COMMIT", help="compare with this commit")
    parser.add_argument("--write-baseline", action="store_true", help="for where there is no history")
    chosen = parser.parse_args()
    sys.exit(main(chosen.base, chosen.write_baseline))
