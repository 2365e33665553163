"""bench/RESULTS.md and its charts, from the files of bench/results and nothing else.

Run `python -m bench.compare.report`. A peer that is missing or failed is called that; it
has no figure. What the columns mean is said in bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.compare.cases import CASES, FRESH, MEGABYTES
from bench.compare.charts import Bar, bars
from bench.compare.payload import LARGE_BYTES
from bench.compare.statistics import Spread, percentile, ratios, spread

FOLDER = Path(__file__).parents[1]
OURS, BASE = "botproxy", "nginx"
FLOORS = ("OpenSSL, one ticket", "OpenSSL, two tickets")
PYTHON = ("granian", "uvicorn", "hypercorn", "mitmproxy")
QUIET = 0.7
"""Load average up to which nobody else is on the machine."""
WORTH = 0.01
"""Share of an operation from which on a file is named."""
SATURATED = 0.9
"""Share of its core that a server must have used for its rate to be its own."""

Found = Mapping[str, Mapping[str, Any]]
"""The files, by name."""


def main(results: Path, page: Path) -> int:
    found = {file.stem: json.loads(file.read_text()) for file in sorted(results.glob("*.json"))}
    if len({each["date"] for each in found.values()}) != 1:
        print("the files are not of one run")
        return 1
    text, drawings = written(found), drawn(found)
    charts = page.parent / "charts"
    charts.mkdir(exist_ok=True)
    for old in charts.glob("*.svg"):
        old.unlink()
    for name, drawing in drawings.items():
        (charts / f"{name}.svg").write_text(drawing)
    page.write_text(text)
    return 0


def written(found: Found) -> str:
    """The page."""
    sections = [
        _head(found),
        _targets(found),
        *(_matrix(found, title, names) for title, names in _groups(found)),
        *(_case(found[name]) for name in _cases(found)),
        *(
            make(found[name])
            for name, make in _OTHERS.items()
            if name in found and "error" not in found[name]
        ),
        _failures(found),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def drawn(found: Found) -> dict[str, str]:
    """The charts, by name."""
    charts = {}
    for name in _cases(found):
        rows = [_bar(peer, ratio) for peer in _order(found[name]) if (ratio := _ratio(found[name], peer))]
        title = f"{found[name]['case']['title']}: CPU of the server"
        charts[name] = bars(title, "as a ratio to nginx in the same round; less is better", rows, 1.0)
    if "idle" in found and "peers" in found["idle"]:
        each = {peer: seen.get("each") for peer, seen in found["idle"]["peers"].items()}
        charts["idle"] = bars("an open connection that does nothing", "KB (PSS)", _plain(each, 1e3))
    if "rest" in found and "peers" in found["rest"]:
        rest = {peer: seen["at_rest"] for peer, seen in found["rest"]["peers"].items()}
        charts["rest"] = bars("process tree at rest, one worker", "MB (PSS)", _plain(rest, 1e6))
    if "steady" in found and "slices" in found["steady"]:
        worst = {peer: percentile(times, 0.99) for peer, times in _waits(found["steady"]).items()}
        rate = found["steady"]["rate"]
        title = f"new connections at {rate:g} a second: until the answer"
        charts["steady"] = bars(title, "milliseconds, 99th percentile", _plain(worst, 1e3))
    return charts


# Figures


def each(case: Mapping[str, Any], peer: str) -> list[float]:
    """CPU microseconds of an operation, round by round; nothing for a peer that failed."""
    if peer in case["problems"]:
        return []
    return [one["cpu"] / one["operations"] * 1e6 for one in case["slices"].get(peer, [])]


def _ratio(case: Mapping[str, Any], peer: str) -> Spread | None:
    mine, base = each(case, peer), each(case, BASE)
    return ratios(mine, base) if mine and len(mine) == len(base) else None


def _rate(case: Mapping[str, Any], peer: str) -> float:
    return _median(one["operations"] / one["seconds"] for one in case["slices"][peer])


def _busy(case: Mapping[str, Any], peer: str) -> float:
    return _median(one["cpu"] / one["seconds"] for one in case["slices"][peer])


def _load_busy(case: Mapping[str, Any], peer: str) -> float:
    return _median((one["load_cpu"] + one["bot_cpu"]) / one["seconds"] for one in case["slices"][peer])


def _kernel(case: Mapping[str, Any], peer: str) -> float:
    """The kernel's share of all CPU; of all rounds together, for it is counted in hundredths of a second."""
    slices = case["slices"][peer]
    used = sum(one["ticks"] for one in slices)
    return sum(one["kernel"] for one in slices) / used if used else 0.0


def _waits(steady: Mapping[str, Any]) -> dict[str, list[int]]:
    return {
        peer: [time for one in slices for time in one["times"]]
        for peer, slices in steady["slices"].items()
        if peer not in steady["problems"]
    }


# Sections


def _head(found: Found) -> str:
    versions = found["versions"]
    peers = [[name, version] for name, version in versions["peers"].items()]
    machine = (
        f"{versions['processor']}, {versions['processors']} processors; {versions['system']}; "
        f"Python {versions['python']}, {versions['openssl']}, uvloop {versions['uvloop']}; "
        f"nginx, HAProxy and hitch with the system's {versions['system_openssl']}"
    )
    commit = f", at commit {versions['commit']}" if versions["commit"] else ""
    return f"""# Results

Made by `bench.compare.report` from [results](results), of {versions["date"]}{commit}.
Method, and what is not measured: [README.md](README.md).

The figures that count are ratios to nginx of the server's CPU for an operation, of the same round: the median
of all rounds, and in brackets where the middle half of them lies. Less is better.

Machine: {machine}.{_busy_machine(versions.get("load_average", 0.0))}

{_table(["peer", "version"], peers)}"""


def _busy_machine(load: float) -> str:
    if load < QUIET:
        return ""
    return (
        f" **It was not quiet: its load average was {load:.1f} before the first measurement. Ratios are less "
        "sure than they should be, rates and times of waiting mean nothing.**"
    )


def _targets(found: Found) -> str:
    rows = []
    for title, limit, reached in _goals(found):
        if reached is None:
            rows.append([title, f"{limit:g}", "not measured", ""])
        else:
            verdict = "reached" if reached <= limit else f"missed by {(reached / limit - 1) * 100:.0f} %"
            rows.append([title, f"{limit:g}", f"{reached:.2f}", verdict])
    text = "## What was aimed at\n\nRatios to nginx, unless a unit is named.\n\n"
    return text + _table(["", "at most", "is", ""], rows) + _against_python(found)


def _goals(found: Found) -> Iterable[tuple[str, float, float | None]]:
    def cpu(name: str) -> float | None:
        case = found.get(f"case-{name}", {})
        ratio = _ratio(case, OURS) if "slices" in case else None
        return ratio.median if ratio else None

    def idle() -> float | None:
        peers = found.get("idle", {}).get("peers", {})
        ours, theirs = (peers.get(peer, {}).get("each") for peer in (OURS, BASE))
        return float(ours / theirs) if ours and theirs else None

    def rest() -> float | None:
        ours = found.get("rest", {}).get("peers", {}).get(OURS, {}).get("at_rest")
        return None if ours is None else float(ours / 1e6)

    def counted(case: str) -> float | None:
        seen = found.get("instructions", {}).get("cases", {}).get(case, {})
        ours, theirs = (seen.get(peer, {}).get("instructions") for peer in (OURS, BASE))
        return float(ours / theirs) if ours and theirs else None

    yield "full TLS 1.3 handshake, ECDSA P-256, and a request", 1.0, cpu("visit")
    yield "the same, user-space instructions", 0.95, counted("visit")
    yield "full TLS 1.3 handshake, RSA 2048, and a request", 1.0, cpu("visit-rsa")
    yield "resumed handshake, and a request", 1.1, cpu("resumed")
    yield "small request on a kept connection", 2.0, cpu("keep-alive")
    yield "the same, to Caddy", 1.0, _to(found, "keep-alive", "Caddy")
    yield "upload of 64 MiB", 1.5, cpu("upload")
    yield "download of 64 MiB", 1.5, cpu("download")
    yield "memory of an idle connection", 1.5, idle()
    yield "process tree at rest, one worker, MB", 60, rest()


def _to(found: Found, name: str, peer: str) -> float | None:
    """botproxy to `peer`, of the same round."""
    case = found.get(f"case-{name}", {})
    if "slices" not in case:
        return None
    ours, theirs = each(case, OURS), each(case, peer)
    ratio = ratios(ours, theirs) if ours and len(ours) == len(theirs) else None
    return ratio.median if ratio else None


def _against_python(found: Found) -> str:
    """How many times as much as botproxy every Python peer needs."""
    rows = []
    for name in _cases(found):
        cells = []
        for peer in PYTHON:
            ratio = _to(found, name.removeprefix("case-"), peer)
            cells.append(f"{1 / ratio:.1f}" if ratio else "-")
        rows.append([found[name]["case"]["title"], *cells])
    if not rows:
        return ""
    for title, file, key in (
        ("memory of an idle connection", "idle", "each"),
        ("process tree at rest", "rest", "at_rest"),
    ):
        peers = found.get(file, {}).get("peers", {})
        ours = peers.get(OURS, {}).get(key)
        theirs = [peers.get(peer, {}).get(key) for peer in PYTHON]
        if ours:
            rows.append([title, *(f"{each / ours:.1f}" if each else "-" for each in theirs)])
    return f"""

How many times botproxy's CPU, or memory, the Python peers need; aimed at was 3 in every case. granian (with
rustls in place of OpenSSL), uvicorn and hypercorn have the bot inside: no hop, no proxy, hence less work.
mitmproxy is a proxy.

{_table(["", *PYTHON], rows)}"""


def _groups(found: Found) -> Iterable[tuple[str, list[str]]]:
    cases = _cases(found)
    fresh = [name for name in cases if found[name]["case"]["operation"] in FRESH]
    yield "New connections", fresh
    yield "Open connections", [name for name in cases if name not in fresh]


def _matrix(found: Found, title: str, names: Sequence[str]) -> str:
    """All peers in all cases of a group."""
    if not names:
        return ""
    rows = []
    for peer in _order(found[names[0]]):
        cells = [_shown(_ratio(found[name], peer)) for name in names]
        if any(cell != "-" for cell in cells):
            rows.append([peer, *cells])
    heads = [found[name]["case"]["title"] for name in names]
    return f"## {title}: CPU of the server, as a ratio to nginx\n\n" + _table(["", *heads], rows)


def _case(case: Mapping[str, Any]) -> str:
    """One case with everything."""
    about = case["case"]
    large = about["operation"] in MEGABYTES
    heads = [
        "",
        "CPU, ratio to nginx",
        "for each CPU second" if large else "CPU of one",
        "the kernel's",
        "rate a second",
        "cores of server, of load",
        "p50, ms",
        "p99, ms",
    ]
    keys = about["keys"].upper()
    return f"""## {about["title"][0].upper()}{about["title"][1:]}

![{about["name"]}](charts/case-{about["name"]}.svg)

TLS {about["version"]}, {about["suite"]}, {about["group"]}, {keys}, chain of two;
{about["connections"]} at once, {case["rounds"]} rounds of {about["seconds"]:g} s.

{_table(heads, [_line(case, peer, large) for peer in _order(case)])}"""


def _line(case: Mapping[str, Any], peer: str, large: bool) -> list[str]:
    """A peer in a case."""
    micros = spread(each(case, peer))
    if micros is None:
        return [peer, case["problems"].get(peer, "nothing")[:120], *[""] * 6]
    price = f"{LARGE_BYTES / micros.median:,.0f} MB" if large else f"{micros.median:.1f} us"
    line = [peer, _shown(_ratio(case, peer)), price]
    if peer in FLOORS:
        return [*line, *[""] * 5]
    rate, busy = _rate(case, peer), _busy(case, peer)
    shown = f"{rate * LARGE_BYTES / 1e6:,.0f} MB" if large else f"{rate:,.0f}"
    latency = [one["latency"] for one in case["slices"][peer]]
    waits = [f"{median(one[key] for one in latency) / 1e3:.1f}" for key in ("p50", "p99")]
    # In brackets: the server could have done more.
    return [
        *line,
        f"{_kernel(case, peer):.0%}",
        shown if busy >= SATURATED else f"({shown})",
        f"{busy:.2f}, {_load_busy(case, peer):.2f}",
        *waits,
    ]


def _idle(idle: Mapping[str, Any]) -> str:
    rows = [
        [peer, f"{seen['each'] / 1e3:.1f} KB" if "each" in seen else f"failed: {seen['error'][:80]}"]
        for peer, seen in idle["peers"].items()
    ]
    return f"""## Memory of an idle connection (PSS)

![idle connection](charts/idle.svg)

{idle["connections"]} connections that have had one request, and five seconds of silence.

{_table(["", "each connection"], rows)}"""


def _rest(rest: Mapping[str, Any]) -> str:
    rows = [
        [peer, f"{seen['at_rest'] / 1e6:.1f} MB", f"{seen['processes']}"]
        for peer, seen in rest["peers"].items()
    ]
    return f"""## Memory at rest (PSS)

![at rest](charts/rest.svg)

After the first request, each without any other beside it.

{_table(["", "all processes", "of them"], rows)}"""


def _steady(steady: Mapping[str, Any]) -> str:
    rows = []
    for peer, times in _waits(steady).items():
        waits = [f"{percentile(times, share) / 1e3:.2f}" for share in (0.5, 0.99, 0.999)]
        micros = spread(each(steady, peer))
        price = f"{micros.median:.0f} us" if micros else "-"
        rows.append([peer, _shown(_ratio(steady, peer)), price, *waits, f"{len(times)}"])
    return f"""## Waiting, at a fixed rate

![waiting](charts/steady.svg)

{steady["rate"]:g} new connections a second, each with a full TLS 1.3 handshake (ECDSA) and one request;
milliseconds from when it was due to the answer. The client's part is in it, the same for all. p99.9 is the
second longest of all there were. A server that waits most of the time pays more CPU for each: its caches are
cold, and every wake-up is for one event.

{_table(["", "CPU, ratio to nginx", "CPU of one", "p50", "p99", "p99.9", "connections"], rows)}"""


def _reload(reload: Mapping[str, Any]) -> str:
    rows = []
    for name, seen in reload["peers"].items():
        if "error" in seen:
            rows.append([name, f"failed: {seen['error'][:80]}", "", "", ""])
            continue
        windows = [seen[kind] for kind in ("quiet", "reloaded")]
        worst = [f"{max(one['max'] or 0 for one in those) / 1e3:.0f}" for those in windows]
        failed = sum(one["error_count"] for one in seen["reloaded"])
        total = failed + sum(one["operations"] for one in seen["reloaded"])
        done = sum(one["renewed"] > 0 for one in seen["reloaded"])
        rows.append(
            [
                name,
                f"{seen['seconds_of_cpu'] * 1e3:.0f} ms",
                f"{done} of {len(seen['reloaded'])}",
                f"{failed} of {total}",
                f"{worst[0]}, {worst[1]} ms",
            ]
        )
    heads = [
        "",
        "CPU of a reload",
        "new certificate seen",
        "failed connections",
        "longest wait: without, with",
    ]
    return f"""## A reload under load

{reload["rate"]:g} new connections a second; the certificate is renewed, and the peer told in its own way;
{reload["pairs"]} times, in turns with as many windows without. CPU is the difference, of all processes and
the command, to hundredths of a second: below some 30 ms it cannot be told from nothing.

{_table(heads, rows)}"""


def _scaling(scaling: Mapping[str, Any]) -> str:
    rows = []
    for name, case in scaling["cases"].items():
        for peer, pair in case["slices"].items():
            if peer in case["problems"]:
                continue
            one, two = ([each["cpu"] / each["operations"] for each in pair[key]] for key in ("one", "two"))
            share = median(each["busiest"] / each["cpu"] for each in pair["two"])
            rows.append([peer, name, _shown(ratios(two, one)), f"{share:.0%}"])
    return f"""## From one worker to two

CPU of an operation with two workers, on both cores, to one worker on one core; and how much of it the busier
worker or thread did. The load shares a core with one of them, so that the rate says nothing.

{_table(["", "case", "CPU, two to one", "the busier"], rows)}"""


def _instructions(counted: Mapping[str, Any]) -> str:
    rows = []
    for name, peers in counted["cases"].items():
        base = peers.get(BASE, {}).get("instructions")
        for peer, seen in peers.items():
            if "error" in seen:
                rows.append([peer, name, f"failed: {seen['error'][:80]}", ""])
                continue
            ratio = f"{seen['instructions'] / base:.2f}" if base else "-"
            rows.append([peer, name, f"{seen['instructions']:,}", ratio])
    return f"""## Instructions in user space

Of one operation, all processes together ({counted["tool"]}).

{_table(["", "case", "instructions", "ratio to nginx"], rows)}{_objects(counted["cases"])}"""


def _objects(cases: Mapping[str, Any]) -> str:
    """Whose instructions they are, of botproxy and nginx."""
    columns = {
        f"{peer}, {case}": {**seen["objects"], "all": seen["instructions"]}
        for case, peers in cases.items()
        for peer in (OURS, BASE)
        if (seen := peers.get(peer, {})).get("objects")
    }
    names = dict.fromkeys(name for column in columns.values() for name in column)
    shown = [
        name
        for name in names
        if any(column.get(name, 0) >= WORTH * column["all"] for column in columns.values()) and name != "all"
    ]
    if not shown:
        return ""
    rows = [[name, *(f"{column.get(name, 0):,}" for column in columns.values())] for name in (*shown, "all")]
    return f"""

Whose they are, by the file that the code is in; what is less than {WORTH:.0%} everywhere is left out.

{_table(["", *columns], rows)}"""


def _failures(found: Found) -> str:
    lines = []
    for name, part in found.items():
        lines += [f"- {name}: {why}" for why in [part.get("error")] if why]
        lines += [f"- {name}, {peer}: {why}" for peer, why in part.get("problems", {}).items()]
        nested = part.get("cases", {"": part})
        for case, peers in nested.items():
            for peer, seen in peers.get("peers", peers).items():
                if isinstance(seen, Mapping) and "error" in seen:
                    lines.append(f"- {name} {case}, {peer}: {seen['error']}".replace(" ,", ","))
                elif peer == "problems" and case:
                    lines += [f"- {name} {case}, {who}: {why}" for who, why in seen.items()]
    return "## What failed\n\n" + ("\n".join(lines) or "Nothing.")


_OTHERS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "instructions": _instructions,
    "rest": _rest,
    "idle": _idle,
    "steady": _steady,
    "reload": _reload,
    "scaling": _scaling,
}

# Private


def _median(values: Iterable[float]) -> float:
    return median(values)


def _cases(found: Found) -> list[str]:
    """Those that were measured, new connections first."""
    names = [f"case-{case.name}" for case in CASES]
    return [name for name in names if name in found and "slices" in found[name]]


def _order(case: Mapping[str, Any]) -> list[str]:
    """The floor, ourselves, the others."""
    peers = [*case["slices"], *(peer for peer in case["problems"] if peer not in case["slices"])]
    return [*(peer for peer in FLOORS if peer in peers), *(peer for peer in peers if peer not in FLOORS)]


def _bar(peer: str, ratio: Spread) -> Bar:
    return Bar(peer, ratio.median, ratio.low, ratio.high, _kind(peer))


def _plain(values: Mapping[str, float | None], unit: float) -> list[Bar]:
    return [
        Bar(peer, value / unit, value / unit, value / unit, _kind(peer))
        for peer, value in values.items()
        if value is not None
    ]


def _kind(peer: str) -> str:
    return "ours" if peer == OURS else "floor" if peer in FLOORS else "theirs"


def _shown(ratio: Spread | None) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})" if ratio else "-"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ours = [[f"**{cell}**" if cell and row[0] == OURS else cell for cell in row] for row in rows]
    lines = [heads, ["---"] * len(heads), *ours]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.compare.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=FOLDER / "results")
    parser.add_argument("--page", type=Path, default=FOLDER / "RESULTS.md")
    chosen = parser.parse_args()
    sys.exit(main(chosen.results, chosen.page))
