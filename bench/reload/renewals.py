"""Does any renewal, however untidy, cost a client anything?

Run `python -m bench.reload.renewals [ROUNDS] [SEED]` (500 rounds by default, a quarter of
an hour). botproxy serves with two workers while several processes make a new verified
connection for every request. Each round renews the certificate, mostly as certbot does,
now and then as badly as programs and people do, with random delays between the steps; it
is over when every worker serves the new one. Exits with 1 when a connection or request
failed, when a worker went back to an older certificate, when one was not served in time,
or when a worker was replaced. The seed makes the same renewals again, though not in time.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bench.lineage import KINDS, Lineage, contents, serial_of
from bench.reload.clients import Attempt, Clients
from bench.reload.sightings import changeover, failures, relapses
from bench.reload.site import site
from bench.site import Site
from tests.certs import Issued
from tests.harness import Proxied, running

WORKERS = 2
PATIENCE = 30.0
CLIENT_PAUSE = 0.02
LONGEST_DELAY = 0.06
"""Seconds between two steps."""
TWICE = 0.15
"""How often a renewal is followed by another in the same round."""
LONGEST_GAP = 1.2
"""Seconds between these two, so that the second meets every stage of the first."""
SHOWN = 10
"""Failures and complaints that are printed."""


# How files are replaced: each yields after every step


def as_certbot(lineage: Lineage, issued: Issued, _: random.Random) -> Iterator[None]:
    """New files, then one link after the other is removed and made again."""
    yield from _write(lineage, issued, KINDS)
    yield from _swap(lineage, KINDS)


def in_any_order(lineage: Lineage, issued: Issued, chance: random.Random) -> Iterator[None]:
    yield from _write(lineage, issued, _shuffled(chance))
    yield from _swap(lineage, _shuffled(chance))


def links_first(lineage: Lineage, issued: Issued, chance: random.Random) -> Iterator[None]:
    """The links lead to files that are not there yet, and then grow."""
    lineage.number += 1
    yield from _swap(lineage, _shuffled(chance))
    for kind in _shuffled(chance):
        yield from _in_pieces(lineage, kind, contents(issued)[kind], chance)


def in_place(lineage: Lineage, issued: Issued, chance: random.Random) -> Iterator[None]:
    """The files that are there are emptied and written anew, piece by piece."""
    for kind in _shuffled(chance):
        yield from _in_pieces(lineage, kind, contents(issued)[kind], chance)


Manner = Callable[[Lineage, Issued, random.Random], Iterator[None]]
MANNERS: dict[Manner, int] = {as_certbot: 60, in_any_order: 15, links_first: 10, in_place: 15}
"""How often of a hundred times."""


@dataclass(slots=True)
class Tally:
    """What the rounds came to."""

    order: list[str]
    """Serials in the order in which they were written."""
    manners: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """From the last step of a round until every worker served the new one."""
    problems: list[str] = field(default_factory=list)


def main(rounds: int, seed: int) -> int:
    print(f"{rounds} rounds, seed {seed}", flush=True)
    chance = random.Random(seed)
    began = time.monotonic()
    with site(WORKERS) as place, running(_config(place), place.directory) as proxied:
        crew = set(proxied.workers())
        with Clients(place.port, place.lineage.ca, CLIENT_PAUSE) as clients:
            clients.wait(lambda attempts: {each.worker for each in attempts} >= crew, PATIENCE)
            tally = _rounds(place.lineage, clients, crew, chance, rounds)
        if set(proxied.workers()) != crew:
            tally.problems.append("workers were replaced")
        complaints = _complaints(proxied)
    return _verdict(tally, clients.attempts, crew, complaints, time.monotonic() - began)


# Private


def _config(place: Site) -> dict[str, Any]:
    return {
        "listen": [f"127.0.0.1:{place.port}"],
        "plain_listen": [],
        "workers": WORKERS,
        "certificates": [{"chain": str(place.lineage.fullchain), "key": str(place.lineage.privkey)}],
        "upstreams": {"bot": {"url": f"unix:{place.bot}"}},
        "state_dir": str(place.directory / "state"),
        "log": {"access": "off"},
    }


def _rounds(lineage: Lineage, clients: Clients, crew: set[int], chance: random.Random, rounds: int) -> Tally:
    tally = Tally([lineage.first])
    for number in range(1, rounds + 1):
        since = len(clients.attempts)
        _renew(lineage, chance, tally)
        if chance.random() < TWICE:
            time.sleep(chance.uniform(0, LONGEST_GAP))
            _renew(lineage, chance, tally)
        renewed, serial = time.monotonic(), tally.order[-1]

        def settled(attempts: Sequence[Attempt], serial: str = serial, renewed: float = renewed) -> bool:
            return changeover(attempts, serial, renewed).is_settled(len(crew))

        if not clients.wait(settled, PATIENCE, since):
            tally.problems.append(f"round {number}: not served by every worker after {PATIENCE:g} s")
            return tally
        tally.seconds.append(changeover(clients.attempts[since:], serial, renewed).complete or 0.0)
        if number % 50 == 0:
            failed = failures(clients.attempts).total()
            print(f"{number:>6} rounds, {len(clients.attempts)} connections, {failed} failed", flush=True)
    return tally


def _renew(lineage: Lineage, chance: random.Random, tally: Tally) -> None:
    (manner,) = chance.choices(list(MANNERS), list(MANNERS.values()))
    issued = lineage.issue()
    tally.manners[manner.__name__] += 1
    tally.order.append(serial_of(issued))
    for _ in manner(lineage, issued, chance):
        time.sleep(chance.uniform(0, LONGEST_DELAY))


def _write(lineage: Lineage, issued: Issued, kinds: Sequence[str]) -> Iterator[None]:
    lineage.number += 1
    for kind in kinds:
        lineage.write_file(kind, contents(issued)[kind])
        yield


def _swap(lineage: Lineage, kinds: Sequence[str]) -> Iterator[None]:
    for kind in kinds:
        lineage.link(kind).unlink()
        yield
        lineage.point(kind)
        yield


def _in_pieces(lineage: Lineage, kind: str, data: bytes, chance: random.Random) -> Iterator[None]:
    """Also cut between two certificates, where what is there so far looks whole."""
    boundary = data.find(b"-----BEGIN", 1)
    cuts = {chance.randrange(len(data)) for _ in range(chance.randrange(3))}
    if boundary > 0 and chance.random() < 0.5:
        cuts.add(boundary)
    edges = [0, *sorted(cuts), len(data)]
    descriptor = os.open(lineage.file(kind), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb", buffering=0) as file:
        yield
        for start, end in pairwise(edges):
            file.write(data[start:end])
            yield


def _shuffled(chance: random.Random) -> list[str]:
    return chance.sample(KINDS, len(KINDS))


def _complaints(proxied: Proxied) -> Counter[str]:
    """Phrases of its log that are no information, with their counts."""
    found: Counter[str] = Counter()
    for line in proxied.log.lines:
        level = line.partition("level=")[2].partition(" ")[0]
        if level != "info":
            found[f"{level}: {line.partition('msg=')[2][:160]}"] += 1
    return found


def _verdict(
    tally: Tally, attempts: Sequence[Attempt], crew: set[int], complaints: Counter[str], seconds: float
) -> int:
    failed = [attempt for attempt in attempts if attempt.failure is not None]
    for attempt in failed[:SHOWN]:
        since = attempt.began - attempts[0].began
        print(
            f"failed after {since:.1f} s: {attempt.failure}: {attempt.detail}, served {attempt.serial or '-'}"
        )
    back = relapses(attempts, tally.order)
    for relapse in back[:SHOWN]:
        print(f"went back: worker {relapse.worker} after {relapse.seconds:.3f} s")
    strangers = {attempt.worker for attempt in attempts if attempt.worker} - crew
    if strangers:
        tally.problems.append(f"others than the first workers served: {sorted(strangers)}")
    for problem in tally.problems:
        print(problem)
    for phrase, count in complaints.most_common(SHOWN):
        print(f"log, {count} times: {phrase}")
    print(f"renewals: {', '.join(f'{count} {manner}' for manner, count in tally.manners.most_common())}")
    if tally.seconds:
        print(
            f"served by every worker after: median {statistics.median(tally.seconds):.2f} s, "
            f"worst {max(tally.seconds):.2f} s"
        )
    print(
        f"{len(tally.seconds)} rounds in {seconds:.0f} s, {len(attempts)} connections, {len(failed)} failed "
        f"{dict(failures(attempts)) or ''}, {len(back)} times a worker went back"
    )
    good = not (failed or back or tally.problems)
    print("nothing was lost" if good else "not as it must be")
    return 0 if good else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(
        main(
            int(sys.argv[1]) if len(sys.argv) > 1 else 500,
            int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1_000_000),
        )
    )
