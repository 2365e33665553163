"""results.json as a Markdown table; nothing in it comes from anywhere else.

Run `python -m bench.attacks.table`: prints it, and puts it between the markers of README.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.attacks.measure import middle

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
PAGE = FOLDER / "README.md"
BEGIN, END = "<!-- attacks table -->", "<!-- end of attacks table -->"
HEADER = (
    "| attack | clean client: errors | p99 quiet, attacked | ratio | CPU: proxy, sender | ratio "
    "| memory, bytes sent | ratio | verdict |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)

Row = Mapping[str, Any]


def main() -> int:
    text = table(json.loads(RESULTS.read_text()))
    print(text)
    old = PAGE.read_text()
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}")
    return 0


def table(rows: Sequence[Row]) -> str:
    return "\n".join([HEADER, *map(line, rows)])


def line(row: Row) -> str:
    measured = row["measured"]
    # Where a case was measured more than once: the one with the middle p99.
    ratio = middle([each["p99_ratio"] for each in measured])
    one = next(each for each in measured if each["p99_ratio"] == ratio)
    errors = sum(each["failed"] for each in measured)
    requests = sum(each["requests"] for each in measured)
    times = f"{one['quiet_p99'] * 1000:.1f} ms, {one['attacked_p99'] * 1000:.1f} ms"
    again = f" (middle of {len(measured)})" if len(measured) > 1 else ""
    cells = [
        row["name"],
        f"{errors} of {requests}",
        times,
        f"{ratio:.1f}{again}",
        f"{max(0.0, one['proxy_cpu']):.2f} s, {one['sender_cpu']:.2f} s",
        f"{one['cpu_ratio']:.1f}",
        f"{_size(one['proxy_memory'])}, {_size(one['sender_bytes'])}",
        f"{one['memory_ratio']:.1f}",
        f"above: {', '.join(row['problems'])}" if row["problems"] else "holds",
    ]
    return f"| {' | '.join(cells)} |"


# Private


def _size(count: float) -> str:
    return f"{count / 1024**2:.1f} MiB" if count >= 1024**2 else f"{count / 1024:.0f} KiB"


if __name__ == "__main__":
    sys.exit(main())
