"""Writes down what happens to certificates: generations, refusals, the audit.

A disk that fails must not darken the bot. What cannot be written is served all the same;
that is said once, `botproxy health` shows it, and it is tried again (`retry`) for as long
as this keeper lives. What is tried again is what holds by then; of the audit, which is a
history, the last lines wait in their order. Writing happens in a thread, for a slow disk
must not keep the keeper from its workers.

Before: `keeper.renewal`. After: `keeper.store`, `keeper.audit`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from botproxy.keeper import audit, vigil
from botproxy.keeper.boot import restore
from botproxy.keeper.lineage import Active, Lineage, describe
from botproxy.keeper.rollout import Rollout
from botproxy.keeper.schedule import Order
from botproxy.keeper.store import Generation, Store

LINES = 100
"""Lines of the audit that wait for the disk, of each certificate; it changes a few times a year."""


class Ledger:
    """What is remembered over a restart."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rolled_back: dict[str, set[int]] = {}
        """Generations of each certificate that are to be marked."""
        self._lines: dict[str, deque[Mapping[str, Any]]] = {}
        """Of the audit, those that were not written yet."""

    async def keep(self, lineage: Lineage, new: Active, trigger: str) -> int:
        """Make `new` the last good one; its number, 0 when the disk does not take it."""
        if new.number:
            taken = await self._write(
                lineage, "generation", lambda: self._store.point(lineage.name, new.number)
            )
            return new.number if taken else 0
        meta = {
            "accepted": new.since.isoformat(),
            "trigger": trigger,
            "source": _source(lineage),
            **describe(new.certificate),
        }
        number = 0

        def keep() -> None:
            nonlocal number
            number = self._store.keep(lineage.name, new.chain, new.key, meta, new.password)

        await self._write(lineage, "generation", keep)
        return number

    async def add_passwords(self, lineage: Lineage) -> None:
        """Keep the password of the files with the generations of an earlier botproxy that it opens."""
        if lineage.entry.password_file is None:
            return

        def add() -> None:
            for number in self._store.numbers(lineage.name):
                generation = self._store.read(lineage.name, number)
                if generation is not None and generation.password is None:
                    restored = restore(generation, lineage.entry)
                    if restored is not None and restored.password is not None:
                        self._store.add_password(lineage.name, number, restored.password)

        await self._write(lineage, "password", add)

    async def go_back(self, lineage: Lineage, number: int, *, rolled_back: int = 0) -> None:
        """The last good one is generation `number` again, and what the files hold stays refused.

        `rolled_back` is the generation that was given up; 0 when there is none.
        """
        marks = self._rolled_back.setdefault(lineage.name, set())
        if rolled_back:
            marks.add(rolled_back)

        def remember() -> None:
            if number:
                self._store.point(lineage.name, number)
            while marks:
                self._store.mark_rolled_back(lineage.name, min(marks))
                marks.remove(min(marks))
            if lineage.refusal is not None:
                self._store.refuse(lineage.name, lineage.refusal)

        await self._write(lineage, "refusal", remember)

    async def forget_refusal(self, lineage: Lineage) -> None:
        await self._write(lineage, "refusal", lambda: self._store.forget_refusal(lineage.name))

    async def replaced_a_key(self, lineage: Lineage) -> bool:
        """Whether a kept generation has another key than the one that is served."""

        def look() -> bool:
            kept = (self._store.read(lineage.name, n) for n in self._store.numbers(lineage.name))
            served = lineage.active.certificate.spki
            return any(each is not None and each.meta.get("spki") != served for each in kept)

        return await asyncio.to_thread(look)

    async def forget_others(self, lineage: Lineage) -> str:
        """Remove every generation but the one that is served; why that failed, empty when it did not."""
        served = lineage.active.number
        await self._write(lineage, "removal", lambda: self._store.forget_others(lineage.name, served))
        return lineage.unwritten.get("removal", "")

    async def retry(self, lineage: Lineage) -> None:
        """Try again what the disk did not take, but for the generation that is served."""
        if "refusal" in lineage.unwritten:
            await self.go_back(lineage, lineage.active.number)
            if lineage.refusal is None and "refusal" not in lineage.unwritten:
                await self.forget_refusal(lineage)
        if "password" in lineage.unwritten:
            await self.add_passwords(lineage)
        if "removal" in lineage.unwritten:
            await self.forget_others(lineage)
        if "audit" in lineage.unwritten:
            await self._write_lines(lineage)

    async def find(self, lineage: Lineage, wanted: int | None) -> tuple[Generation | None, list[int]]:
        """A generation if it is there, and the numbers of all.

        Without `wanted` the last one before the served one that is another certificate of the same files,
        and was not rolled back.
        """
        numbers = await asyncio.to_thread(self._store.numbers, lineage.name)
        if wanted is not None:
            return await asyncio.to_thread(self._store.read, lineage.name, wanted), numbers
        return await asyncio.to_thread(self._one_before, lineage, numbers), numbers

    def _one_before(self, lineage: Lineage, numbers: Sequence[int]) -> Generation | None:
        served = lineage.active
        for number in sorted(numbers, reverse=True):
            if served.number and number >= served.number:
                continue
            generation = self._store.read(lineage.name, number)
            if generation is None or generation.is_rolled_back:
                continue
            meta = generation.meta
            is_other = meta.get("fingerprint") != served.certificate.fingerprint
            if is_other and meta.get("source") == _source(lineage):
                return generation
        return None

    async def audit(
        self,
        lineage: Lineage,
        result: str,
        old: Active,
        new: Active,
        order: Order,
        now: datetime,
        reason: str = "",
        rollout: Rollout | None = None,
    ) -> None:
        """Append one line about what became of `new`."""
        entry = _entry(lineage, result, order, now, reason, rollout)
        entry |= {"old": _identity(old), "new": _identity(new)}
        await self._append(lineage, entry)

    async def audited(self, lineage: Lineage) -> Mapping[str, Any] | None:
        """What the last line says is served; None when there is none.

        It need not be what is: files may have changed while nobody ran, or a keeper died before it could
        write.
        """
        return await asyncio.to_thread(audit.served_last, self._audit_file, lineage.name)

    async def audit_start(
        self, lineage: Lineage, before: Mapping[str, Any] | None, now: datetime, rollout: Rollout
    ) -> None:
        """Append a line about what is served from the start; `before`: what was until then."""
        entry = _entry(lineage, rollout.result, Order("start", 0.0), now, rollout.reason, rollout)
        await self._append(lineage, entry | {"old": before, "new": _identity(lineage.active)})

    @property
    def _audit_file(self) -> Path:
        return self._store.directory.parent / "audit.jsonl"

    async def _append(self, lineage: Lineage, entry: Mapping[str, Any]) -> None:
        lineage.last = {key: entry[key] for key in ("time", "result", "reason", "trigger", "seconds")}
        self._lines.setdefault(lineage.name, deque(maxlen=LINES)).append(entry)
        await self._write_lines(lineage)

    async def _write_lines(self, lineage: Lineage) -> None:
        lines = self._lines[lineage.name]

        def write() -> None:
            while lines:
                audit.append(self._audit_file, lines[0])
                lines.popleft()

        await self._write(lineage, "audit", write)

    async def _write(self, lineage: Lineage, what: str, write: Callable[[], None]) -> bool:
        try:
            await asyncio.to_thread(write)
        except OSError as error:
            vigil.complain_of_disk(lineage, what, self._store.directory, error)
            return False
        vigil.praise_disk(lineage, what)
        return True


# Private


def _entry(
    lineage: Lineage, result: str, order: Order, now: datetime, reason: str, rollout: Rollout | None
) -> dict[str, Any]:
    seconds = order.spent | (rollout.seconds if rollout else {})
    return {
        "time": now.isoformat(timespec="milliseconds"),
        "certificate": lineage.name,
        "result": result,
        "reason": reason,
        "trigger": order.trigger,
        "forced": order.force,
        "seconds": {step: round(spent, 4) for step, spent in seconds.items()},
        "replaced": rollout.replaced if rollout else 0,
        "workers": [
            {"pid": pid, "fingerprints": list(fingerprints)}
            for pid, fingerprints in (rollout.workers if rollout else ())
        ],
    }


def _source(lineage: Lineage) -> dict[str, str]:
    return {"chain": lineage.entry.chain, "key": lineage.entry.key}


def _identity(active: Active) -> dict[str, Any]:
    return {"generation": active.number, **describe(active.certificate)}
