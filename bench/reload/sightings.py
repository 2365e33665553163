"""What attempts say about who served which certificate, and when. Pure: values in, values out.

The moment of a change cannot be seen, only connections before and after it. Times here
are the later bound: the change was complete no later than when a client saw the new
certificate that had begun after every sight of the old one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.reload.clients import Attempt

ENOUGH = 50
"""Connections in a row that were given the new certificate, until the change counts as complete."""


@dataclass(frozen=True, slots=True)
class Changeover:
    """How one certificate followed another. Seconds from the renewal on; None: did not happen."""

    first: float | None
    """Until a client was given the new one."""
    complete: float | None
    """Until no client was given the old one any more."""
    afterwards: Mapping[int, int]
    """Connections after that, by the process that served them."""

    def is_settled(self, workers: int) -> bool:
        """Whether enough connections, over all `workers`, were given the new one."""
        return sum(self.afterwards.values()) >= ENOUGH and len(self.afterwards) >= workers


def changeover(attempts: Iterable[Attempt], serial: str, renewed: float) -> Changeover:
    """The change to `serial`, whose files were complete at `renewed`."""
    seen = sorted(
        (attempt for attempt in attempts if attempt.handshaken >= renewed), key=lambda each: each.handshaken
    )
    first = next((each.handshaken - renewed for each in seen if each.serial == serial), None)
    last_old = max((each.handshaken for each in seen if each.serial != serial), default=renewed)
    after = [each for each in seen if each.serial == serial and each.began >= last_old]
    complete = after[0].handshaken - renewed if after else None
    answered = Counter(each.worker for each in after if each.failure is None)
    return Changeover(first, complete, dict(answered))


def failures(attempts: Iterable[Attempt]) -> Counter[str]:
    """How many failed, by kind."""
    return Counter(attempt.failure for attempt in attempts if attempt.failure is not None)


@dataclass(frozen=True, slots=True)
class Relapse:
    """A worker that served an older certificate after a newer one."""

    worker: int
    newer: str
    older: str
    seconds: float
    """Between the two sights."""


def relapses(attempts: Iterable[Attempt], order: Sequence[str]) -> list[Relapse]:
    """Where a worker went back in `order`, the serials from the oldest on.

    Only connections that did not overlap are compared: of two at the same time nobody can say which was
    first.
    """
    rank = {serial: number for number, serial in enumerate(order)}
    by_worker: dict[int, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        if attempt.worker:
            by_worker[attempt.worker].append(attempt)
    found = []
    for worker, theirs in by_worker.items():
        by_begin = sorted(theirs, key=lambda each: each.began)
        by_sight = sorted(theirs, key=lambda each: each.handshaken)
        newest, position = None, 0
        for attempt in by_begin:
            while by_sight[position].handshaken <= attempt.began:
                sight = by_sight[position]
                if newest is None or rank[sight.serial] >= rank[newest.serial]:
                    newest = sight
                position += 1
            if newest is not None and rank[attempt.serial] < rank[newest.serial]:
                seconds = attempt.handshaken - newest.handshaken
                found.append(Relapse(worker, newest.serial, attempt.serial, seconds))
    return found
