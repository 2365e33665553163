"""From a changed file to a certificate that every client gets, or to the reason why not.

Looks at the files whenever `keeper.schedule` has a reason. What they hold is read twice,
judged, proven, rolled out, and written down; one certificate at a time, so that what
fails is known. Nothing is decided by the time of a file, and whatever happens the last
good certificate goes on being served.

Before: `keeper.watch`, `keeper.answers`. Uses `keeper.lineage` for what is known of each
certificate, `keeper.appraisal`, `keeper.rollout`, `keeper.ledger`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from botproxy.control.packets import PacketError
from botproxy.errors import ConfigError, Problem
from botproxy.keeper import vigil
from botproxy.keeper.appraisal import objection
from botproxy.keeper.boot import refusal_of, restore
from botproxy.keeper.ledger import Ledger
from botproxy.keeper.lineage import Active, Lineage, serial_text
from botproxy.keeper.load import parse_pair
from botproxy.keeper.probes import Question, questions
from botproxy.keeper.rollout import Phase, Roller, Rollout
from botproxy.keeper.schedule import Change, Order, Schedule
from botproxy.keeper.source import Pair, read_pair
from botproxy.keeper.states import State
from botproxy.keeper.store import Refusal
from botproxy.keeper.watch import Trigger as Noticed
from botproxy.keeper.workers import Offer
from botproxy.tls.certificates import Certificate
from botproxy.tls.context import CertificateSet
from botproxy.tls.rules import Finding, examine

if TYPE_CHECKING:
    from botproxy.config.schema import Config

logger = logging.getLogger(__name__)

SETTLE = 0.1
"""Seconds between the two readings."""
ASKED_PATIENCE = 3.0
"""Seconds that somebody who asks for a reload waits for files that are not whole."""
_STATES: dict[Phase, State] = {
    "preparing": State.PREPARING,
    "committed": State.COMMITTED,
    "verifying": State.VERIFYING,
}


class Renewals:
    """The life of all configured certificates."""

    def __init__(
        self,
        config: Config,
        lineages: Sequence[Lineage],
        ledger: Ledger,
        roller: Roller,
        listener: ssl.SSLContext,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`listener` is only read; `wall` tells the date."""
        self._tls = config.tls
        self._lineages = lineages
        self._ledger = ledger
        self._roller = roller
        self._listener = listener
        self._wall = wall
        self._schedule = Schedule()
        self._wake = asyncio.Event()
        self._confirming: asyncio.Task[None] | None = None
        self._unconfirmed: list[tuple[Lineage, Mapping[str, Any] | None]] = []
        """What the audit does not know yet, and what it knows instead."""

    def notice(self, trigger: Noticed | str) -> None:
        """The files may have changed."""
        now = time.monotonic()
        if trigger == "event":
            self._schedule.event(now)
        else:
            self._schedule.add(Order("poll" if trigger == "poll" else "signal", now))
        self._wake.set()

    async def reload(self, names: frozenset[str] | None, *, force: bool) -> list[Change]:
        """Look at the files now; what became of each certificate. `force` overrides the guard."""
        return await self._ask(Order("command", time.monotonic(), names, force))

    async def rollback(self, name: str, to: int | None, *, force: bool) -> list[Change]:
        """Go back to an older generation of a certificate; `force`: also when clients would refuse it."""
        return await self._ask(Order("rollback", time.monotonic(), frozenset({name}), force, to))

    async def with_old_keys(self, names: frozenset[str] | None) -> list[str]:
        """Certificates whose key is the only one that is known of them: nothing has replaced it."""
        chosen = [each for each in self._lineages if names is None or each.name in names]
        return [each.name for each in chosen if not await self._ledger.replaced_a_key(each)]

    async def forget_older(self, names: frozenset[str] | None) -> str:
        """Remove all generations but the one that is served: their key is in wrong hands.

        Returns what could not be removed, and why; empty when nothing of them is left.
        """
        chosen = [each for each in self._lineages if names is None or each.name in names]
        problems = {each.name: await self._ledger.forget_others(each) for each in chosen}
        return "; ".join(f"{name}: {problem}" for name, problem in problems.items() if problem)

    async def run(self) -> None:
        """Until it is cancelled."""
        await self._keep_vigil()
        for lineage in self._lineages:
            await self._ledger.add_passwords(lineage)
            before = await self._ledger.audited(lineage)
            if before is None or before.get("fingerprint") != lineage.active.certificate.fingerprint:
                self._unconfirmed.append((lineage, before))
        self._confirming = asyncio.create_task(self._confirm_start())
        try:
            while True:
                order = await self._next()
                if order is not None:
                    changes = await self._carry_out(order)
                    if order.done is not None and not order.done.done():
                        order.done.set_result(changes)
                await self._keep_vigil()
                if self._confirming.done() and not self._confirming.cancelled():
                    self._confirming.result()  # whatever fails there ends the keeper, too
        finally:
            self._confirming.cancel()

    async def _confirm_start(self) -> None:
        """What is served from the start, and was not before, is verified and written down like a renewal.

        Renewals do not wait for it: the first that is rolled out ends it, and is verified itself.
        """
        rollout: Rollout | None = None
        while self._unconfirmed:
            lineage, _ = self._unconfirmed[0]
            if rollout is None or rollout.result == "active":  # else the next one could not be asked either
                rollout = await self._roller.confirm(partial(self._questions, new=lineage.active))
                if rollout.result != "active":
                    phrase = "what is served from the start could not be verified"
                    logger.warning(phrase, extra={"data": {"why": rollout.reason}})
            writing = asyncio.ensure_future(self._write_start(rollout))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await writing  # no line is written twice
                raise

    async def _write_start(self, rollout: Rollout) -> None:
        lineage, before = self._unconfirmed.pop(0)
        await self._ledger.audit_start(lineage, before, self._wall(), rollout)

    async def _end_confirming(self) -> None:
        """Make room for a rollout."""
        if self._confirming is None or self._confirming.done():
            return
        self._confirming.cancel()
        await asyncio.wait([self._confirming])
        while self._unconfirmed:
            await self._write_start(Rollout("unverified", "a newer one came before every worker was asked"))

    async def _ask(self, order: Order) -> list[Change]:
        order.done = asyncio.get_running_loop().create_future()
        self._schedule.add(order)
        self._wake.set()
        return await order.done

    async def _next(self) -> Order | None:
        """The next reason to look; None when only time has passed."""
        while True:
            now = time.monotonic()
            looks = [lineage.next_look for lineage in self._lineages if lineage.next_look is not None]
            due = self._schedule.next(now, looks)
            if not isinstance(due, float):
                return due
            self._wake.clear()
            try:
                async with asyncio.timeout(due - now):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _keep_vigil(self) -> None:
        """What only time brings about, and what the disk did not take."""
        now = time.monotonic()
        self._schedule.ticked(now)
        for lineage in self._lineages:
            vigil.look_at(lineage, now, self._wall())
            if lineage.active.number == 0:
                number = await self._ledger.keep(lineage, lineage.active, "start")
                lineage.active = replace(lineage.active, number=number)
            await self._ledger.retry(lineage)

    async def _carry_out(self, order: Order) -> list[Change]:
        chosen = [each for each in self._lineages if order.names is None or each.name in order.names]
        if order.trigger == "rollback":
            return [await self._go_back(lineage, order) for lineage in chosen]
        changes: dict[str, Change] = {}
        patience = time.monotonic() + ASKED_PATIENCE
        looked = chosen
        while True:
            changes |= {change.name: change for change in await self._look(looked, order)}
            looked = [lineage for lineage in chosen if lineage.unsettled is not None]
            if order.done is None or not looked or time.monotonic() >= patience:
                return [changes.get(each.name) or _unchanged(each) for each in chosen]
            await asyncio.sleep(SETTLE)

    # Reading and judging

    async def _look(self, lineages: Sequence[Lineage], order: Order) -> list[Change]:
        """Read the files of `lineages`, and take over what is new and good."""
        first = await asyncio.to_thread(_read_all, lineages)
        differing = []
        for lineage in lineages:
            reading = first[lineage.name]
            if isinstance(reading, Pair) and reading.digest == lineage.active.digest:
                await self._settle(lineage)
            else:
                differing.append(lineage)
        if not differing:
            return []
        await asyncio.sleep(SETTLE)
        second = await asyncio.to_thread(_read_all, differing)
        changes = []
        for lineage in differing:
            change = await self._weigh(lineage, first[lineage.name], second[lineage.name], order)
            if change is not None:
                changes.append(change)
        return changes

    async def _settle(self, lineage: Lineage) -> None:
        """The files hold what is served."""
        if lineage.differs_since is not None:
            data = {"certificate": lineage.name}
            logger.info("the certificate files hold what is served", extra={"data": data})
            await self._ledger.forget_refusal(lineage)
        lineage.settled()

    async def _weigh(self, lineage: Lineage, first: Reading, second: Reading, order: Order) -> Change | None:
        """What to do with the second reading of files that hold something else than is served."""
        now = time.monotonic()
        if lineage.again_at is not None and now >= lineage.again_at:
            lineage.again_at = None
        digest = second.digest if isinstance(second, Pair) and order.done is None else ""
        if lineage.leaves_alone(digest, now, self._wall()):
            return None
        lineage.again_at = None
        lineage.differs(now)
        try:
            pair, certificate = _whole(lineage, first, second)
        except ConfigError as error:
            return _not_whole(lineage, error.problems, now)
        if certificate.is_same(lineage.active.certificate):
            lineage.active = lineage.active.respelled(certificate, pair)
            lineage.settled()
            return None
        lineage.unsettled = None
        lineage.move(State.VALIDATING)
        finding = await asyncio.to_thread(
            objection,
            certificate,
            lineage.active.certificate,
            self._wall(),
            self._listener,
            forced=order.force or lineage.entry.allow_regression,
        )
        order.spent = {"noticing": now - order.since, "validating": time.monotonic() - now}
        new = Active(
            certificate, pair.chain, pair.key, pair.digest, 0, self._wall(), pair.findings, pair.password
        )
        if finding is not None:
            return await self._refuse(lineage, new, finding, order)
        return await self._roll_out(lineage, new, order)

    async def _refuse(self, lineage: Lineage, new: Active, finding: Finding, order: Order) -> Change:
        known, refusal = lineage.refusal, refusal_of(finding, new.digest, self._wall())
        lineage.refuse(refusal)
        if known is None or (known.digest, known.rule) != (refusal.digest, refusal.rule):
            data = {
                "certificate": lineage.name,
                "file": lineage.entry.chain,
                "rule": refusal.rule,
                "says": refusal.says,
                "hint": refusal.fix,
            }
            logger.error("the new certificate is refused, the current one is served on", extra={"data": data})
            await self._ledger.audit(
                lineage,
                "rejected",
                lineage.active,
                new,
                order,
                self._wall(),
                f"{refusal.rule}: {refusal.says}",
            )
        return _unchanged(lineage)

    # Taking over

    async def _roll_out(self, lineage: Lineage, new: Active, order: Order) -> Change:
        """Bring `new` to every worker; `new.number` says whether it is in the store already."""
        certificates = [
            new.certificate if each is lineage else each.active.certificate for each in self._lineages
        ]
        try:
            offer = Offer.of(certificates)
        except PacketError as error:
            finding = Finding("too_many_names", "error", str(error), "spread the names over two certificates")
            return await self._refuse(lineage, new, finding, order)
        old, number = lineage.active, 0

        async def persist() -> None:
            nonlocal number
            number = await self._ledger.keep(lineage, new, order.trigger)

        await self._end_confirming()
        rollout = await self._roller.run(
            offer, self._questions(offer, new), persist, lambda phase: lineage.move(_STATES[phase])
        )
        return await self._conclude(lineage, old, replace(new, number=number), rollout, order)

    def _questions(self, offer: Offer, new: Active) -> list[Question]:
        loaded = CertificateSet.load(offer.handed, self._tls.strict_sni)
        return questions(loaded, new.certificate, self._tls.min_version)

    async def _conclude(
        self, lineage: Lineage, old: Active, new: Active, rollout: Rollout, order: Order
    ) -> Change:
        """Write down how a rollout ended, and say it."""
        match rollout.result:
            case "refused":
                finding = Finding(
                    "refused_by_worker",
                    "error",
                    f"a worker cannot serve it: {rollout.reason}",
                    "get a certificate with an ECDSA P-256 or RSA 2048 key",
                )
                return await self._refuse(lineage, new, finding, order)
            case "unanswered":
                lineage.move(State.ACTIVE)
                logger.error("a certificate could not be rolled out", extra={"data": {"why": rollout.reason}})
                return Change(lineage.name, "failed", old.number, "unanswered", rollout.reason)
            case "rolled_back":
                return await self._conclude_rolled_back(lineage, old, new, rollout, order)
        lineage.active = new
        lineage.move(State.ACTIVE)
        if order.trigger != "rollback":
            lineage.settled()
            await self._ledger.forget_refusal(lineage)
        await self._ledger.audit(
            lineage, rollout.result, old, new, order, self._wall(), rollout.reason, rollout
        )
        data = {
            "certificate": lineage.name,
            "generation": new.number,
            "serial": serial_text(new.certificate.serial),
            "expires": new.certificate.not_after.isoformat(),
            "trigger": order.trigger,
            "seconds": round(time.monotonic() - order.since, 3),
        }
        if rollout.result == "unverified":
            phrase = "a new certificate is served, and could not be verified"
            logger.warning(phrase, extra={"data": data | {"why": rollout.reason}})
        else:
            logger.info("a new certificate is served", extra={"data": data})
        for finding in (*new.remarks, *examine(new.certificate, self._wall(), (), None)):
            vigil.say_finding(lineage.name, lineage.entry.chain, finding)
        vigil.note_stage(lineage, self._wall())
        return Change(lineage.name, rollout.result, new.number, says=rollout.reason)

    async def _conclude_rolled_back(
        self, lineage: Lineage, old: Active, new: Active, rollout: Rollout, order: Order
    ) -> Change:
        since = self._wall().isoformat(timespec="seconds")
        hint = "see the log of the workers; botproxy cert reload tries it again"
        refusal = Refusal(new.digest, "rolled_back", rollout.reason, hint, since, final=rollout.is_wrong)
        if order.trigger == "rollback":
            lineage.move(State.ROLLED_BACK)  # of what the files hold nothing is said
        else:
            lineage.rolled_back(refusal, time.monotonic())
        await self._ledger.go_back(lineage, old.number, rolled_back=new.number)
        data = {"certificate": lineage.name, "why": rollout.reason, "generation": old.number, "hint": hint}
        logger.error("a new certificate was rolled back", extra={"data": data})
        await self._ledger.audit(
            lineage, "rolled_back", old, new, order, self._wall(), rollout.reason, rollout
        )
        return Change(lineage.name, "rolled_back", old.number, "rolled_back", rollout.reason, hint)

    # Going back

    async def _go_back(self, lineage: Lineage, order: Order) -> Change:
        """The operator's rollback."""
        generation, numbers = await self._ledger.find(lineage, order.to)
        older = restore(generation, lineage.entry) if generation is not None else None
        if older is None:
            what = "no other one before" if order.to is None else f"no generation {order.to} of these files"
            says = f"{what} is kept (there are: {', '.join(map(str, numbers)) or 'none'})"
            if generation is not None:
                says = f"generation {generation.number} cannot be used (other files, or another password)"
            return Change(lineage.name, "failed", lineage.active.number, "no_generation", says)
        if older.certificate.is_same(lineage.active.certificate):
            return Change(lineage.name, "unchanged", lineage.active.number)
        if not order.force and (finding := _not_now(older.certificate, self._wall())) is not None:
            says = f"generation {older.number} cannot be gone back to: {finding.sentence}"
            hint = "botproxy cert status lists the others; if it is meant so: botproxy cert rollback --force"
            return Change(lineage.name, "rejected", lineage.active.number, finding.rule, says, hint)
        lineage.unsettled = None
        change = await self._roll_out(lineage, older, order)
        if change.outcome in ("active", "unverified"):
            await self._pin(lineage, older.number)
        return change

    async def _pin(self, lineage: Lineage, number: int) -> None:
        """What the files hold now is not taken again until they change."""
        reading = (await asyncio.to_thread(_read_all, [lineage]))[lineage.name]
        if not isinstance(reading, Pair) or reading.digest == lineage.active.digest:
            return
        lineage.differs(time.monotonic())
        lineage.refuse(
            Refusal(
                reading.digest,
                "went_back",
                f"the operator went back to generation {number}",
                "botproxy cert reload takes what the files hold",
                self._wall().isoformat(timespec="seconds"),
                final=True,
            )
        )
        await self._ledger.go_back(lineage, number)


# Private


Reading = Pair | ConfigError


def _read_all(lineages: Sequence[Lineage]) -> dict[str, Reading]:
    found: dict[str, Reading] = {}
    for lineage in lineages:
        try:
            found[lineage.name] = read_pair(lineage.entry, lineage.path)
        except ConfigError as error:
            found[lineage.name] = error
    return found


def _whole(lineage: Lineage, first: Reading, second: Reading) -> tuple[Pair, Certificate]:
    """The pair that two readings agree on, and its certificate. Raises ConfigError when it is not whole."""
    if isinstance(second, ConfigError):
        raise second
    if isinstance(first, ConfigError) or first.digest != second.digest:
        raise ConfigError(
            [Problem(lineage.entry.chain, lineage.path, "the files are being written", "wait, or try again")]
        )
    certificate = parse_pair(lineage.entry, lineage.path, second)
    if not certificate.key_matches:
        mismatch = examine(certificate, certificate.not_before, (), None)[0]
        raise ConfigError([Problem(lineage.entry.chain, lineage.path, mismatch.sentence, mismatch.fix)])
    return second, certificate


def _not_whole(lineage: Lineage, problems: Sequence[Problem], now: float) -> Change:
    lineage.unsettle(problems, now)
    says = "; ".join(str(problem) for problem in problems)
    return Change(lineage.name, "rejected", lineage.active.number, "not_whole", says, problems[0].hint or "")


def _not_now(certificate: Certificate, now: datetime) -> Finding | None:
    """Why clients refuse `certificate` at `now`, whatever its names; None when it is valid."""
    dates = [f for f in examine(certificate, now, (), None) if f.rule in ("expired", "not_yet_valid")]
    return dates[0] if dates else None


def _unchanged(lineage: Lineage) -> Change:
    refusal, number = lineage.refusal, lineage.active.number
    if refusal is None:
        return Change(lineage.name, "unchanged", number)
    return Change(lineage.name, "rejected", number, refusal.rule, refusal.says, refusal.fix)
