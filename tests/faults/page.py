"""`python -m tests.faults.page`: run every row, and write docs/faults.md."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.rows import ROWS, Row

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "faults.md"
BEGINNING = """\
# Faults and what they cost

Each row is a test in [tests/faults](../tests/faults). It brings the fault about in a running botproxy while a
checker asks beside it: 50 requests a second over TLS, every other one on a new connection, the rest on four
kept ones. Whatever is not a whole, correct answer within 20 s has failed. The checker asks a bot without
faults, or, where the fault is ours or the machine's, the same one as everybody. The columns of other programs
are about their defaults, as their documents tell them. Tests shorten timeouts and lower limits.

`python -m tests.faults.page` runs all of it and writes this page.

| # | fault | nginx | HAProxy | Envoy | botproxy | may fail | failed | result |
|---|---|---|---|---|---|---|---|---|
"""
END = """
Rows 19 to 24 are about certificate files: cut short, of two pairs, links that change, gone, unreadable,
expired, a CA that is missing. They are tested in [test_renewal.py](../tests/e2e/test_renewal.py),
[test_bad_files.py](../tests/e2e/test_bad_files.py) and [test_deaths.py](../tests/e2e/test_deaths.py).
"""


@dataclass(slots=True)
class Result:
    """What became of the tests of one row."""

    failed: int = 0
    total: int = 0
    allowed: int = 0
    wrong: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Promises that are known not to be kept."""
    kept: int = 0
    skipped: int = 0

    @property
    def told(self) -> str:
        if self.wrong:
            return "failed"
        if self.broken:
            which = "kept, but" if self.kept else "not kept:"
            return f"{which} {'; '.join(dict.fromkeys(self.broken))}"
        if not self.kept:
            return "not run"
        return "kept"


class Results:
    """A plugin of pytest that gathers them."""

    def __init__(self) -> None:
        self.rows: defaultdict[int, Result] = defaultdict(Result)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = row_of(report.nodeid)
        if found is None:
            return
        row = self.rows[found]
        if report.failed:
            row.wrong.append(report.nodeid)
        elif report.skipped and hasattr(report, "wasxfail"):
            row.broken.append(report.wasxfail.removeprefix("reason: "))
        elif report.skipped:
            row.skipped += 1
        elif report.when == "call":
            row.kept += 1
        if report.when == "teardown":
            for name, value in report.user_properties:
                if name in ("failed", "total", "allowed"):
                    setattr(row, name, getattr(row, name) + int(str(value)))


def row_of(name: str) -> int | None:
    """The number in the name of a test."""
    found = re.search(r"test_row_(\d\d)", name)
    return int(found[1]) if found else None


def line(row: Row, result: Result) -> str:
    allowed = row.allowed
    if result.allowed and not allowed[0].isdecimal():
        allowed += f" ({result.allowed})"
    cells = [
        str(row.number),
        row.fault,
        row.nginx,
        row.haproxy,
        row.envoy,
        row.promise,
        allowed,
        f"{result.failed} of {result.total}",
        result.told,
    ]
    return f"| {' | '.join(cells)} |\n"


def main() -> int:
    results = Results()
    files = [str(file) for file in sorted(HERE.glob("test_*.py")) if file.name != "test_page.py"]
    code = int(pytest.main(["-q", *files], plugins=[results]))
    PAGE.write_text(BEGINNING + "".join(line(row, results.rows[row.number]) for row in ROWS) + END)
    return code


if __name__ == "__main__":
    sys.exit(main())
