"""What the admin endpoint answers: the table of questions and orders.

    GET  /-/live           the keeper runs
    GET  /-/ready          200 when in every slot a worker serves the current certificates, else 503
    GET  /-/certificates   everything about every certificate
    POST /-/reload         look at the files now    ?name=N&force=1&compromised=1&wait=1
    POST /-/reconfigure    the configuration and the files
    POST /-/rollback       an older generation      ?name=N&to=7&force=1
    POST /-/rotate         new session ticket keys

A reload without `wait` is answered as soon as it is taken. Who asked a keeper that is
being replaced is told to ask `again`. No secret is ever in an answer.

Before: `keeper.admin`, which speaks HTTP. Asked by `botproxy health`, `cert`, `tickets`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol

from botproxy.control.link import Reconfigured
from botproxy.control.vitals import Vital, Vitals
from botproxy.keeper.lineage import Lineage
from botproxy.keeper.renewal import Renewals
from botproxy.keeper.schedule import Change
from botproxy.keeper.store import Store
from botproxy.keeper.superior import Superseded
from botproxy.keeper.watch import Watch
from botproxy.keeper.workers import Workers

Answer = tuple[int, dict[str, Any]]
"""HTTP status and a JSON object."""
Query = Mapping[str, Sequence[str]]
"""Values of each parameter."""


class Supervision(Protocol):
    """What only the supervisor can do."""

    async def rotate(self) -> str: ...

    async def reconfigure(self) -> Reconfigured: ...


class Answers:
    """Answers for one keeper."""

    def __init__(
        self,
        lineages: Sequence[Lineage],
        renewals: Renewals,
        workers: Workers,
        watch: Watch,
        store: Store,
        superior: Supervision,
        slots: int,
        vitals: Vitals,
    ) -> None:
        """`slots`: how many workers there shall be."""
        self._slots = slots
        self._lineages = lineages
        self._renewals = renewals
        self._workers = workers
        self._watch = watch
        self._store = store
        self._superior = superior
        self._vitals = vitals
        self._background: set[asyncio.Task[Any]] = set()

    async def __call__(self, method: str, path: str, query: Query) -> Answer:
        match method, path:
            case "GET", "/-/live":
                return 200, {"live": True}
            case "GET", "/-/ready":
                answer = self._ready()
                return (200 if answer["ready"] else 503), answer
            case "GET", "/-/certificates":
                return 200, self._certificates()
            case "POST", "/-/reload":
                return await self._reload(query)
            case "POST", "/-/rollback":
                return await self._rollback(query)
            case "POST", "/-/reconfigure" | "/-/rotate":
                try:
                    return await (self._reconfigure() if path == "/-/reconfigure" else self._rotate())
                except Superseded:
                    return 503, {"error": "another process answers from now on", "again": True}
            case _, "/-/live" | "/-/ready" | "/-/certificates":
                return 405, {"error": "only GET and HEAD are answered", "allow": "GET, HEAD"}
            case _, "/-/reload" | "/-/reconfigure" | "/-/rollback" | "/-/rotate":
                return 405, {"error": "only POST is answered", "allow": "POST"}
            case _:
                return 404, {"error": "known are /-/live, /-/ready and /-/certificates"}

    def _ready(self) -> dict[str, Any]:
        now, wall = time.monotonic(), datetime.now(UTC)
        return {
            "ready": self._workers.serves_all(self._slots),
            "degraded": [trouble for lineage in self._lineages for trouble in lineage.troubles(now, wall)],
            "workers": self._workers_now(),
            "certificates": [
                {
                    "name": lineage.name,
                    "names": list(lineage.active.certificate.names),
                    "not_after": lineage.active.certificate.not_after.isoformat(),
                    "fingerprint": lineage.active.certificate.fingerprint,
                }
                for lineage in self._lineages
            ],
        }

    def _certificates(self) -> dict[str, Any]:
        now, wall = time.monotonic(), datetime.now(UTC)
        found = []
        for lineage in self._lineages:
            fingerprint = lineage.active.certificate.fingerprint
            serving = [w.pid for w in self._workers.present if fingerprint in w.fingerprints]
            status = lineage.status(now, wall)
            status["served_by"], status["workers"] = len(serving), len(self._workers.present)
            status["kept"] = self._store.numbers(lineage.name)
            found.append(status)
        return {"certificates": found, "watch": self._watch.mode, "workers": self._workers_now()}

    def _workers_now(self) -> list[dict[str, Any]]:
        return [
            {"slot": w.slot, "pid": w.pid, "set": w.serving, **_in_numbers(self._vitals.of(w.pid))}
            for w in self._workers.present
        ]

    async def _reload(self, query: Query) -> Answer:
        names = frozenset(query.get("name", ()))
        if unknown := names - {lineage.name for lineage in self._lineages}:
            return 404, self._unknown(min(unknown))
        work = asyncio.ensure_future(
            self._do_reload(
                names or None, force=_is_on(query, "force"), compromised=_is_on(query, "compromised")
            )
        )
        # Kept here, for whoever asked may leave before it is done.
        self._background.add(work)
        work.add_done_callback(self._background.discard)
        if not _is_on(query, "wait"):
            return 202, {"taken": True}
        return 200, await asyncio.shield(work)

    async def _do_reload(
        self, names: frozenset[str] | None, *, force: bool, compromised: bool
    ) -> dict[str, Any]:
        changes = await self._renewals.reload(names, force=force)
        answer: dict[str, Any] = {"certificates": [asdict(change) for change in changes]}
        if compromised and all(_is_served(change) for change in changes):
            answer["old_keys"] = await self._renewals.with_old_keys(names)
            answer["removal"] = await self._renewals.forget_older(names)
            try:
                answer["rotation"] = await self._superior.rotate()
            except Superseded:
                answer["rotation"] = "the configuration was changed meanwhile"
        return answer

    async def _rotate(self) -> Answer:
        problem = await self._superior.rotate()
        return 200, {"rotated": not problem, "says": problem}

    async def _reconfigure(self) -> Answer:
        """The configuration first; what it says of certificates may have changed with it."""
        change = await self._superior.reconfigure()
        if change.problems:
            return 200, {"changed": False, "problems": list(change.problems)}
        if change.changed:
            return 200, {"changed": True, "problems": []}
        changes = await self._renewals.reload(None, force=False)
        return 200, {
            "changed": False,
            "problems": [],
            "certificates": [asdict(each) for each in changes],
        }

    async def _rollback(self, query: Query) -> Answer:
        names = list(query.get("name", ()))
        if not names and len(self._lineages) == 1:
            names = [self._lineages[0].name]
        if len(names) != 1:
            return 400, {"error": "which certificate?", "hint": f"name one of: {self._names()}"}
        if names[0] not in {lineage.name for lineage in self._lineages}:
            return 404, self._unknown(names[0])
        to = next(iter(query.get("to", ())), None)
        if to is not None and not (to.isdecimal() and len(to) < 10):
            return 400, {
                "error": "expected the number of a generation",
                "hint": "botproxy cert status has them",
            }
        number, force = None if to is None else int(to), _is_on(query, "force")
        changes = await self._renewals.rollback(names[0], number, force=force)
        return 200, {"certificates": [asdict(change) for change in changes]}

    def _unknown(self, name: str) -> dict[str, Any]:
        return {"error": f"no certificate is called {name[:64]!a}", "hint": f"there are: {self._names()}"}

    def _names(self) -> str:
        return ", ".join(lineage.name for lineage in self._lineages)


def _in_numbers(vital: Vital | None) -> dict[str, float]:
    if vital is None:
        return {}
    return {"lag_ms": round(vital.lag * 1000), "memory_mib": round(vital.memory / 2**20, 1)}


def _is_on(query: Query, name: str) -> bool:
    return list(query.get(name, ())) == ["1"]


def _is_served(change: Change) -> bool:
    return change.outcome in ("unchanged", "active", "unverified")
