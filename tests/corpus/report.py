"""Prints the summary line of the request side of the corpus: `python -m tests.corpus.report`.

The exit status is 1 when there are violations; each is printed before the summary.
"""

from __future__ import annotations

import sys

from tests.corpus.requests import run


def main() -> int:
    result = run()
    for name, found in result.violations.items():
        print(f"{name}: {'; '.join(found)}")
    print(result.summary())
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
