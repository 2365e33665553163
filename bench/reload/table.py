"""results.json as a Markdown table; nothing in it comes from anywhere else.

Run `python -m bench.reload.table`. Prints the table, and puts it between the markers of
README.md, of the repository and of this folder, where they stand. A question that could
not be measured shows as failed, a peer that was not there as missing.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
PAGES = (FOLDER.parents[1] / "README.md", FOLDER / "README.md")
BEGIN, END = "<!-- reload table -->", "<!-- end of reload table -->"

Answer = Mapping[str, Any]


def main() -> int:
    text = table(json.loads(RESULTS.read_text()))
    print(text)
    for page in PAGES:
        if page.exists():
            old = page.read_text()
            new = between_markers(old, text)
            if new != old:
                page.write_text(new)
                print(f"\nwritten into {page.relative_to(FOLDER.parents[1])}")
    return 0


def table(results: Mapping[str, Any]) -> str:
    """The peers as columns, for their names are short and the questions long."""
    peers = results["peers"]
    rows = [
        ["", *(f"**{peer['name']}**" for peer in peers)],
        ["---"] * (len(peers) + 1),
        ["version", *(_version(peer) for peer in peers)],
        ["notices new files by itself", *(_cell(peer, "unasked", _unasked) for peer in peers)],
        ["what it is told", *(peer["command"] for peer in peers)],
        [
            "every worker serves the new one after: median, worst",
            *(_cell(peer, "under_load", _complete) for peer in peers),
        ],
        [
            f"failed connections during {results['conditions']['renewals']} renewals",
            *(_cell(peer, "under_load", _failures) for peer in peers),
        ],
        [
            "connection with a request: median, 99 of 100",
            *(_cell(peer, "under_load", _connections) for peer in peers),
        ],
        *(
            [f"TLS {version} tickets that still resume", *(_cell(peer, "tickets", ask) for peer in peers)]
            for version, ask in (("1.3", _tickets("1.3")), ("1.2", _tickets("1.2")))
        ),
        ["new certificate, old key: serves", *(_cell(peer, "mismatch", _running) for peer in peers)],
        ["the same: starts", *(_cell(peer, "mismatch", _restart) for peer in peers)],
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def between_markers(page: str, text: str) -> str:
    """`page` with `text` in the place of what stands between the markers, if they are there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{text}\n{end}{after}" if begin and end else page


# Private


def _cell(peer: Answer, question: str, show: Callable[[Answer], str]) -> str:
    if peer["missing"]:
        return "missing"
    answer = peer[question]
    return "failed" if "error" in answer else show(answer)


def _version(peer: Answer) -> str:
    if peer["missing"]:
        return "missing"
    words = str(peer["version"]).replace("/", " ").split()
    return next(word.partition("-")[0] for word in words if word[0].isdigit())


def _unasked(answer: Answer) -> str:
    return _spread([sample["complete"] for sample in answer["samples"]], f"{answer['waited_seconds']:g} s")


def _complete(answer: Answer) -> str:
    return _spread([sample["complete"] for sample in answer["renewals"]], "the wait")


def _spread(seconds: list[float | None], wait: str) -> str:
    came = [each for each in seconds if each is not None]
    if not came:
        return f"never (within {wait})" if wait != "the wait" else "never"
    text = f"{_seconds(statistics.median(came))}, {_seconds(max(came))}"
    late = len(seconds) - len(came)
    return f"{text}; {late} of {len(seconds)} never" if late else text


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.0f} ms"


def _failures(answer: Answer) -> str:
    failures, connections = answer["failures"], answer["connections"]
    if not connections:
        return "failed"
    kinds = ", ".join(f"{count} {kind}" for kind, count in failures.items())
    return f"{sum(failures.values())} of {connections}" + (f" ({kinds})" if kinds else "")


def _connections(answer: Answer) -> str:
    spent = answer["connection_seconds"]
    return f"{_seconds(spent['p50'])}, {_seconds(spent['p99'])}"


def _tickets(version: str) -> Callable[[Answer], str]:
    def show(answer: Answer) -> str:
        before = answer["without_a_renewal"][version].get("resumed", 0)
        after = answer["after_a_renewal"][version].get("resumed", 0)
        text = f"{after} of {answer['tries']}"
        return text if before == answer["tries"] else f"{text} ({before} without a renewal)"

    return show


def _running(answer: Answer) -> str:
    running = answer["running"]
    served = ", ".join(f"the {which}" for which in running["served"]) or "nothing"
    failed = sum(running["failures"].values())
    return f"{served}; {failed} of {running['connections']} failed"


def _restart(answer: Answer) -> str:
    restart = answer["restart"]
    if not restart["starts"]:
        return "no"
    served = ", ".join(f"the {which}" for which in restart["served"]) or "nothing"
    failed = sum(restart["failures"].values())
    return f"yes, serves {served}" + (f"; {failed} failed" if failed else "")


if __name__ == "__main__":
    sys.exit(main())
