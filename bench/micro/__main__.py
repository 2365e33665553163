"""Prints what each stage of an exchange costs; run `python -m bench.micro`.

Microseconds are processor time of this thread, the median of interleaved rounds, and good for a glance only:
they drift with the machine. Instructions are exact to a tenth of a percent, and there where valgrind is.
The last column is the share of an exchange on a kept connection, of those stages that every one has.
"""

from __future__ import annotations

import statistics
import time

from bench import instructions
from bench.micro.counted import counted
from bench.micro.stages import Stage, exchange, others, stages
from bench.micro.trees import ROOT

ROUNDS, ROUND = 15, 0.01
"""How often each stage is timed, and for how many seconds at a time."""


def seconds(stage: Stage, calls: int) -> float:
    """Processor time of one call."""
    began = time.thread_time()
    for _ in range(calls):
        stage()
    return (time.thread_time() - began) / calls


def main() -> None:
    every = stages()
    calls = {name: max(1, int(ROUND / seconds(stage, 10))) for name, stage in every.items()}
    rounds = [{name: seconds(stage, calls[name]) for name, stage in every.items()} for _ in range(ROUNDS)]
    times = {name: statistics.median(each[name] for each in rounds) for name in every}
    counts = counted({"PYTHONPATH": str(ROOT)}).each if instructions.is_here() else {}
    costs = counts or times
    whole = sum(costs[name] for name in exchange())
    print(f"{'':24}{'us':>9}{'instructions':>14}{'of an exchange':>16}")
    for name in every:
        shown = f"{counts[name]:,.0f}" if name in counts else "-"
        share = (
            f"{costs[name] / whole * 100:.1f}%" if name not in others() else f"{costs[name] / whole:.2f} x"
        )
        print(f"{name:24}{times[name] * 1e6:>9.2f}{shown:>14}{share:>16}")
    print(f"{'an exchange':24}{sum(times[name] for name in exchange()) * 1e6:>9.2f}", end="")
    print(f"{f'{whole:,.0f}' if counts else '-':>14}")


if __name__ == "__main__":
    main()
