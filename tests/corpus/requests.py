"""Sends cases through a running botproxy, many at a time, and collects what became of each.

Every connection comes from a loopback address of its own. botproxy vouches for that address toward
the bot, so what the bot saw is known case by case although all run at once. A case is over when
botproxy has ended the connection, which its short deadlines guarantee: nothing is guessed by waiting.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from tests.corpus.cases import SEGMENTATIONS, Case, Segmentation, load
from tests.corpus.client import Client
from tests.corpus.front import Front, front
from tests.corpus.oracle import Outcome, verdict
from tests.corpus.origin import Origin
from tests.harness import descriptors_of, holds_connections

AT_ONCE = 48
LINGERING = 5.0
"""Seconds after which a connection that its client has left is closed at the latest."""
FRESH = b"GET /fresh HTTP/1.1\r\nHost: bot.example\r\nConnection: close\r\n\r\n"


@dataclass
class Job:
    """One case in one segmentation."""

    case: Case
    segmentation: Segmentation
    outcome: Outcome

    @property
    def name(self) -> str:
        return f"{self.case.name} {self.segmentation.__name__}"


class Addresses:
    """Addresses of clients, each used once."""

    def __init__(self) -> None:
        self._number = 0

    def next(self) -> str:
        self._number += 1
        return f"127.7.{self._number // 250}.{self._number % 250 + 1}"


class Senders:
    """Clients of one botproxy in front of `origin`."""

    def __init__(self, port: int, trust: ssl.SSLContext, origin: Origin) -> None:
        self._port = port
        self._trust = trust
        self._origin = origin
        self._addresses = Addresses()
        self._room = asyncio.Semaphore(AT_ONCE)

    async def send(self, pieces: Iterable[bytes], *, ends: bool = False) -> Outcome:
        """What became of `pieces` on a connection of their own."""
        async with self._room:
            source = self._addresses.next()
            async with await Client.connect(self._port, self._trust, source) as client:
                await client.send(pieces)
                if ends:
                    client.send_end()
                received = await client.wait_end()
                assert client.ending is not None
                ending = client.ending
            visits = await self._origin.wait_left(source)
            return Outcome(received, ending, visits, await self._is_served())

    async def send_all(self, inputs: Iterable[tuple[Iterable[bytes], bool]]) -> list[Outcome]:
        """What became of each: its pieces, and whether the client ends its side behind them."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.send(pieces, ends=ends)) for pieces, ends in inputs]
        return [task.result() for task in tasks]

    async def _is_served(self) -> bool:
        async with await Client.connect(self._port, self._trust, self._addresses.next()) as client:
            await client.send([FRESH])
            return (await client.wait_end()).startswith(b"HTTP/1.1 200 ")


@dataclass
class Watch:
    """What must be the same before and after, whatever was sent."""

    front: Front
    origin: Origin
    workers: list[int]
    descriptors: int

    @classmethod
    async def begin(cls, senders: Senders, front: Front, origin: Origin) -> Self:
        await senders.send([FRESH])  # what the first request opens for good is open
        workers = front.proxied.workers()
        while holds_connections(front.port):  # that one, or a probe of the keeper
            await asyncio.sleep(0.02)
        return cls(front, origin, workers, descriptors_of(workers[0]))

    async def end(self) -> list[str]:
        """Violations, once every connection had the time to be forgotten."""
        found = []
        if self.front.proxied.workers() != self.workers:
            return ["a worker ended"]
        deadline = asyncio.get_running_loop().time() + LINGERING
        while (after := descriptors_of(self.workers[0])) != self.descriptors:
            if asyncio.get_running_loop().time() > deadline:
                found.append(f"{after} descriptors instead of {self.descriptors}")
                break
            await asyncio.sleep(0.05)
        if any(visit.raw for visit in self.origin.unattributed):
            found.append("bytes at the bot that belong to no client")
        return found


@dataclass
class Run:
    """The whole request side."""

    jobs: list[Job]
    violations: dict[str, list[str]]
    """By case and segmentation; those about the process under `botproxy`."""

    def summary(self) -> str:
        cases = {job.case.name: job.case for job in self.jobs}
        levels = [cases[name.split(" ")[0]].level for name in self.violations if name.split(" ")[0] in cases]
        must = len(self.violations) - levels.count("policy")
        return (
            f"corpus: {len(cases)} requests x {len(SEGMENTATIONS)} segmentations, "
            f"{len(self.violations)} violations (must {must}, policy {levels.count('policy')})"
        )


def run() -> Run:
    """Every entry in every segmentation against a botproxy of its own."""
    return asyncio.run(_run())


async def _run() -> Run:
    async with Origin().listening() as origin:
        with front(origin.port) as behind:
            return await _run_against(origin, behind)


async def _run_against(origin: Origin, behind: Front) -> Run:
    senders = Senders(behind.port, behind.trust, origin)
    watch = await Watch.begin(senders, behind, origin)
    pairs = [(case, segmentation) for segmentation in SEGMENTATIONS for case in load("request")]
    outcomes = await senders.send_all([(segmentation(case.raw), case.ends) for case, segmentation in pairs])
    jobs = [Job(*pair, outcome) for pair, outcome in zip(pairs, outcomes, strict=True)]
    violations = _judge(jobs)
    about = await watch.end()
    return Run(jobs, violations | ({"botproxy": about} if about else {}))


def _judge(jobs: list[Job]) -> dict[str, list[str]]:
    violations = {}
    first: dict[str, Outcome] = {}
    for job in jobs:
        found = verdict(job.case, job.outcome)
        reference = first.setdefault(job.case.name, job.outcome)
        if job.outcome.decision != reference.decision:
            found.append(f"{job.outcome.decision} instead of {reference.decision}")
        if found:
            violations[job.name] = found
    return violations
