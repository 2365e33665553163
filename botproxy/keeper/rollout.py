"""Brings every worker to a new set of certificates, or leaves all of them where they were.

Two phases: all prepare, which includes a handshake in the worker, and only then one
after the other commits. A worker that refuses stops the rollout for all, one that does not
answer is replaced. Between the phases the caller writes down what is about to be
served. Then the listener is asked, and a wrong answer is mended: told again, the
worker replaced, at last everything rolled back.

Before: `keeper.renewal`. Uses `keeper.workers`, `keeper.probes`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from botproxy.keeper.probes import Endpoint, Question, ask_all
from botproxy.keeper.workers import Offer, Workers

PREPARE_PATIENCE = 5.0
"""Seconds in which a worker loads and proves a set; it takes milliseconds."""
PREPARE_EACH = 0.1
"""Seconds more for each certificate: all may be new, and RSA with 4096 bits takes 20 ms where it is fast."""
COMMIT_PATIENCE = 5.0
REPLACED_PATIENCE = 20.0
"""Seconds in which the replacement of a worker serves."""
TRIES = 3

Result = Literal["active", "unverified", "refused", "unanswered", "rolled_back"]
"""`unverified`: everybody says that they serve it, and the listener could not be asked.
`unanswered`: no worker was there; nothing was changed."""
Phase = Literal["preparing", "committed", "verifying"]


@dataclass(slots=True)
class Rollout:
    """How one went."""

    result: Result
    reason: str = ""
    """Why it is not `active`."""
    is_wrong: bool = False
    """Whether the listener showed something else, which no time mends."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each phase took."""
    replaced: int = 0
    """Workers that had to be replaced."""
    workers: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """Process ids at the end, with the fingerprints each serves."""


class Roller:
    """Carries rollouts out, one at a time."""

    def __init__(
        self, workers: Workers, endpoint: Endpoint | None, replace: Callable[[int, str], None]
    ) -> None:
        """`endpoint`: the listener to ask; None when there is none that can be. `replace` ends a worker."""
        self._workers = workers
        self._endpoint = endpoint
        self._replace = replace

    async def run(
        self,
        offer: Offer,
        asked: Sequence[Question],
        persist: Callable[[], Awaitable[None]],
        entered: Callable[[Phase], None],
    ) -> Rollout:
        """Bring everybody to `offer`; it is the current set afterwards if the result says so.

        `persist` is called between the phases. `entered` is told of each phase. The offer that did not
        become current, or no longer is, was closed when this returns.
        """
        before, rollout = self._workers.current, Rollout("active")
        began = time.monotonic()
        entered("preparing")
        if not await self._prepare(offer, rollout):
            self._workers.withdraw(offer)
            self._workers.make_current(before)  # for whoever came as this began
            return rollout
        began = _lap(rollout, "preparing", began)
        await persist()
        entered("committed")
        self._workers.make_current(offer)
        serving = await self._serve(offer, rollout)
        began = _lap(rollout, "committing", began)
        entered("verifying")
        if serving:
            await self._verify(offer, asked, rollout)
        _lap(rollout, "verifying", began)
        if rollout.result == "rolled_back":
            self._workers.make_current(before)
            await self._workers.until(lambda: self._workers.all_serve, COMMIT_PATIENCE)
            self._workers.withdraw(offer)
        else:
            self._workers.withdraw(before)
        rollout.workers = tuple((worker.pid, worker.fingerprints) for worker in self._workers.present)
        return rollout

    async def confirm(self, asked: Callable[[Offer], Sequence[Question]]) -> Rollout:
        """See that everybody serves the current set, which no rollout of ours has brought to them.

        That is so at the start, also when a keeper died in the middle of one. There is nothing to go back
        to: the result is `active` or `unverified`.
        """
        workers, rollout = self._workers, Rollout("active")
        offer, began = workers.current, time.monotonic()
        serving = await workers.until(lambda: workers.all_serve, COMMIT_PATIENCE)
        began = _lap(rollout, "committing", began)
        if serving:
            await self._verify(offer, asked(offer), rollout)
        else:
            rollout.result, rollout.reason = "unverified", "not every worker has taken it over yet"
        _lap(rollout, "verifying", began)
        if rollout.result == "rolled_back":
            rollout.result = "unverified"
        rollout.workers = tuple((worker.pid, worker.fingerprints) for worker in workers.present)
        return rollout

    async def _prepare(self, offer: Offer, rollout: Rollout) -> bool:
        workers = self._workers
        await workers.until(lambda: bool(workers.present), PREPARE_PATIENCE)
        crew = workers.present
        workers.offer(offer)

        def answered() -> bool:
            there = set(workers.present)
            crew_there = [worker for worker in crew if worker in there]
            return any(worker.has_refused(offer.set) for worker in crew_there) or all(
                worker.prepared == offer.set for worker in crew_there
            )

        await workers.until(answered, PREPARE_PATIENCE + PREPARE_EACH * len(offer.handed))
        for worker in crew:
            if worker.has_refused(offer.set) and worker.refused is not None:
                rollout.result, rollout.reason = "refused", worker.refused.reason
                return False
        for worker in workers.present:
            if worker in crew and worker.prepared != offer.set:
                self._end(worker.pid, rollout, "it did not answer while certificates were prepared")
        if not any(worker.prepared == offer.set for worker in crew):
            rollout.result, rollout.reason = "unanswered", "no worker answered"
            return False
        return True

    async def _serve(self, offer: Offer, rollout: Rollout) -> bool:
        """Until everybody says that they serve `offer`; whoever does not is replaced once."""
        workers = self._workers
        if await workers.until(lambda: workers.all_serve, COMMIT_PATIENCE):
            return True
        ended = {worker.pid for worker in workers.present if worker.serving != offer.set}
        for pid in ended:
            self._end(pid, rollout, "it did not take over the certificates")
        await self._replacements(ended)
        if workers.all_serve:
            return True
        if any(worker.serving == offer.set for worker in workers.present) or not workers.present:
            # Whoever is silent helps nobody by going back; its replacement will serve the new one.
            rollout.result, rollout.reason = "unverified", "not every worker has taken it over yet"
        else:
            rollout.result, rollout.reason = "rolled_back", "no worker takes it over"
        return False

    async def _verify(self, offer: Offer, asked: Sequence[Question], rollout: Rollout) -> None:
        """Ask the listener; mend what is wrong."""
        workers = self._workers
        if self._endpoint is None:
            rollout.result, rollout.reason = "unverified", "there is no listener that can be asked"
            return
        for attempt in range(TRIES + 1):
            answers = await ask_all(self._endpoint, asked, workers)
            missing = {worker.pid for worker in workers.present} - answers.right
            if not missing and not answers.wrong:
                return
            if not answers.is_reachable:
                break
            if attempt < TRIES - 1:
                workers.offer(offer)  # told again; whoever has prepared it is told to serve it
                await workers.until(lambda: all(w.has_answered(offer.set) for w in workers.present), 1.0)
            elif attempt < TRIES:
                for pid in answers.wrong:
                    self._end(pid, rollout, "the listener does not show what it says it serves")
                for pid in answers.mute:
                    self._end(pid, rollout, "it did not answer when it was asked over the listener")
                await self._replacements({*answers.wrong, *answers.mute})
        if answers.wrong:
            rollout.result, rollout.is_wrong = "rolled_back", True
            rollout.reason = f"the listener shows something else: {next(iter(answers.wrong.values()))}"
        else:
            rollout.result = "unverified"
            rollout.reason = "not every worker could be asked over the listener"
            if answers.is_foreign:
                rollout.reason += "; another program answers on the same port"

    async def _replacements(self, ended: set[int]) -> None:
        workers = self._workers

        def serve() -> bool:
            return workers.all_serve and ended.isdisjoint(worker.pid for worker in workers.present)

        await workers.until(serve, REPLACED_PATIENCE)

    def _end(self, pid: int, rollout: Rollout, why: str) -> None:
        rollout.replaced += 1
        self._replace(pid, why)


def _lap(rollout: Rollout, phase: str, began: float) -> float:
    now = time.monotonic()
    rollout.seconds[phase] = now - began
    return now
