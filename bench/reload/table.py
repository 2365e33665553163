"""results.json as a Markdown table; nothing in it comes from anywhere else.

Run `python -m bench.reload.table`. Prints the table, and puts it between the markers of
README.md, of the repository and of this folder, where they stand. A question that could
not be measured shows as failed, a peer that was not there as missing.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
RESULTS = FOLDER / "results.json"
PAGES = (ROOT / "README.md", FOLDER / "README.md")
BEGIN, END = "<!-- reload table -->", "<!-- end of reload table -->"

Answer = Mapping[str, Any]


def main() -> int:
    text = table(json.loads(RESULTS.read_text()))
    print(text)
    for page in PAGES:
        old = page.read_text() if page.exists() else ""
        new = between_markers(old, text)
        if new != old:
            page.write_text(new)
            print(f"\nwritten into {page.relative_to(ROOT)}")
    return 0


def table(results: Mapping[str, Any]) -> str:
    """A column for each peer: their names are short, the questions long."""
    renewals = results["conditions"]["renewals"]
    questions: list[tuple[str, Callable[[Answer], str]]] = [
        ("version", _version),
        ("what it is told after a renewal", lambda peer: str(peer["command"])),
        ("told nothing, it serves the new certificate after: median, worst", _of("unasked", _noticed)),
        ("told, every worker serves it after: median, worst", _of("under_load", _complete)),
        (f"failed connections during {renewals} renewals under load", _of("under_load", _failures)),
        ("TLS 1.3 tickets that still resume", _of("tickets", _tickets("1.3"))),
        ("TLS 1.2 tickets that still resume", _of("tickets", _tickets("1.2"))),
        ("new certificate beside the old key: serves on", _of("mismatch", _running)),
        ("new certificate beside the old key: starts", _of("mismatch", _restart)),
    ]
    peers = results["peers"]
    rows = [
        ["", *(f"**{peer['name']}**" for peer in peers)],
        ["---"] * (len(peers) + 1),
        *(
            [words, *("missing" if peer["missing"] else show(peer) for peer in peers)]
            for words, show in questions
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def between_markers(page: str, text: str) -> str:
    """`page` with `text` in the place of what stands between the markers, if they are there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}\n{text}\n{end}{after}" if begin and end else page


# Private


def _of(question: str, show: Callable[[Answer], str]) -> Callable[[Answer], str]:
    """What `show` says of a peer's answer to `question`."""
    return lambda peer: "failed" if "error" in peer[question] else show(peer[question])


def _version(peer: Answer) -> str:
    words = str(peer["version"]).replace("/", " ").split()
    return next(word.partition("-")[0] for word in words if word[0].isdigit())


def _noticed(answer: Answer) -> str:
    came = _came(answer["samples"])
    if not came:
        return f"never (within {answer['waited_seconds']:g} s)"
    return _times(came) + _late(came, answer["samples"])


def _complete(answer: Answer) -> str:
    came = _came(answer["renewals"])
    return _times(came) + _late(came, answer["renewals"]) if came else "never"


def _came(samples: Sequence[Answer]) -> list[float]:
    return [sample["complete"] for sample in samples if sample["complete"] is not None]


def _late(came: Sequence[float], samples: Sequence[Answer]) -> str:
    return f"; {len(samples) - len(came)} of {len(samples)} never" if len(came) < len(samples) else ""


def _times(came: Sequence[float]) -> str:
    return f"{_seconds(statistics.median(came))}, {_seconds(max(came))}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.0f} ms"


def _failures(answer: Answer) -> str:
    failures, connections = answer["failures"], answer["connections"]
    if not connections:
        return "failed"
    kinds = ", ".join(f"{count} {kind}" for kind, count in failures.items())
    return f"{sum(failures.values())} of {connections}" + (f" ({kinds})" if kinds else "")


def _tickets(version: str) -> Callable[[Answer], str]:
    def show(answer: Answer) -> str:
        before = answer["without_a_renewal"][version].get("resumed", 0)
        after = answer["after_a_renewal"][version].get("resumed", 0)
        text = f"{after} of {answer['tries']}"
        return text if before == answer["tries"] else f"{text} ({before} without a renewal)"

    return show


def _running(answer: Answer) -> str:
    return _served(answer["running"])


def _restart(answer: Answer) -> str:
    restart = answer["restart"]
    return f"yes: {_served(restart)}" if restart["starts"] else "no"


def _served(seen: Answer) -> str:
    served = " and ".join(f"the {which} one" for which in seen["served"]) or "nothing"
    failed = sum(seen["failures"].values())
    return f"{served}, {failed} of {seen['connections']} failed"


if __name__ == "__main__":
    sys.exit(main())
