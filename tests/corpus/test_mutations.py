"""Requests with a few bytes changed at random: whatever they mean, the invariants hold.

A failure prints the bytes; once understood they become a line of the corpus. The seed is fixed, so
that a run repeats; another one is `MUTATION_SEED=7 pytest tests/corpus/test_mutations.py`.
"""

from __future__ import annotations

import asyncio
import os
import random

from tests.corpus.cases import SEGMENTATIONS, load
from tests.corpus.front import front
from tests.corpus.oracle import Outcome, invariants
from tests.corpus.origin import Origin
from tests.corpus.requests import Senders, Watch

SEED = int(os.environ.get("MUTATION_SEED", "20"))
COUNT = 400
INSERTED = [b"\r\n", b"\r", b"\n", b"\0", b":", b"\t", b" ", b"\x0b", b"\xa0", b",", b";", b"\r\n\r\n"]
FRAMING = [
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"transfer-encoding:chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive, Content-Length\r\n",
    b"Host: evil.example\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\n",
]
LONGEST = 2000
"""Bytes; longer entries test limits, which mutations do not reach."""


def mutate(raw: bytes, chance: random.Random) -> bytes:
    """One change of the kinds that http-garden makes."""
    at = chance.randrange(len(raw))
    kind = chance.randrange(7)
    if kind == 0:
        return raw[:at] + raw[at + 1 :]
    if kind == 1:
        return raw[:at] + bytes([chance.randrange(256)]) + raw[at:]
    if kind == 2:
        return raw[:at] + bytes([chance.randrange(256)]) + raw[at + 1 :]
    if kind == 3:
        return raw[:at] + chance.choice(INSERTED) + raw[at:]
    lines = raw.splitlines(keepends=True)
    line = chance.randrange(len(lines))
    if kind == 4:
        lines.insert(line, lines[chance.randrange(len(lines))])
    elif kind == 5:
        other = chance.randrange(len(lines))
        lines[line], lines[other] = lines[other], lines[line]
    else:
        lines.insert(min(line, 1) or 1, chance.choice(FRAMING))
    return b"".join(lines)


def mutants() -> list[bytes]:
    chance = random.Random(SEED)
    seeds = [case.raw for case in load("request") if case.expect != "reject" and len(case.raw) < LONGEST]
    made = []
    for _ in range(COUNT):
        raw = chance.choice(seeds)
        if chance.random() < 0.2:
            raw += chance.choice(seeds)
        for _ in range(chance.choice((1, 1, 2, 3))):
            raw = mutate(raw, chance)
        made.append(raw)
    return made


async def send(made: list[bytes]) -> tuple[list[Outcome], list[str]]:
    async with Origin().listening() as origin:
        with front(origin.port) as behind:
            senders = Senders(behind.port, behind.trust, origin)
            watch = await Watch.begin(senders, behind, origin)
            inputs = [
                (SEGMENTATIONS[number % len(SEGMENTATIONS)](raw), False) for number, raw in enumerate(made)
            ]
            return await senders.send_all(inputs), await watch.end()


def test_mutated_requests_break_no_invariant() -> None:
    made = mutants()
    outcomes, about = asyncio.run(send(made))
    violations = {
        raw: found for raw, outcome in zip(made, outcomes, strict=True) if (found := invariants(outcome))
    }
    assert not violations
    assert not about
    served = sum(bool(outcome.complete) for outcome in outcomes)
    assert COUNT / 10 < served < COUNT * 9 / 10, "mutations must neither be all harmless nor all absurd"
