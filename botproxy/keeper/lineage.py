"""One configured certificate through its renewals: what is served, what the files hold, what was refused.

The keeper has one for each entry of `certificates`. It remembers; `keeper.renewal`
decides. Times for waiting are monotonic, so that a jump of the clock moves no deadline.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from botproxy.errors import Problem
from botproxy.keeper.source import Pair
from botproxy.keeper.states import State, step
from botproxy.keeper.store import Refusal
from botproxy.tls.certificates import Certificate
from botproxy.tls.guard import is_fine
from botproxy.tls.lifetime import Stage, renewal_due, stage
from botproxy.tls.rules import Finding

if TYPE_CHECKING:
    from botproxy.config.schema import Certificate as Entry

logger = logging.getLogger(__name__)

FIRST_RETRY = 0.1
LONGEST_RETRY = 10.0
"""Seconds between two looks at files that are not whole; doubled each time."""
PATIENCE = 30.0
"""Seconds that files may be missing, cut or not fit together before it is said: programs write slowly."""
REST = 300.0
"""Seconds in which what was rolled back is left alone; then it is tried again, unless that is final."""
ALARM = 120.0
"""Seconds for which something else may be served than the files hold before that is an alarm."""


@dataclass(frozen=True, slots=True)
class Active:
    """The certificate that is served."""

    certificate: Certificate
    chain: bytes
    key: bytes = field(repr=False)
    digest: str
    """Of the files it was read from."""
    number: int
    """Its generation in the store; 0 when it could not be kept."""
    since: datetime
    remarks: tuple[Finding, ...] = ()
    """What was odd about the files, whatever they hold."""
    password: bytes | None = field(default=None, repr=False)
    """What opens `key`, if it is encrypted."""

    def respelled(self, certificate: Certificate, pair: Pair) -> Active:
        """The same, which the files hold in other words now."""
        return replace(
            self,
            certificate=certificate,
            chain=pair.chain,
            key=pair.key,
            digest=pair.digest,
            remarks=pair.findings,
            password=pair.password,
        )


@dataclass(slots=True)
class Unsettled:
    """Files that are not whole."""

    problems: Sequence[Problem]
    since: float
    next_look: float
    retry: float = FIRST_RETRY
    said: bool = False


_UNWRITTEN = {
    "password": "what opens older generations could not be kept in the state directory",
    "refusal": "what was refused or gone back from could not be noted in the state directory",
    "removal": "older keys could not be removed from the state directory",
    "audit": "lines of the audit could not be written, and wait",
}


class Lineage:
    """One certificate; see the module."""

    def __init__(self, index: int, name: str, entry: Entry, active: Active) -> None:
        self.index = index
        self.name = name
        self.entry = entry
        self.state = State.ACTIVE
        self.active = active
        self.refusal: Refusal | None = None
        """Of what the files hold now; None when it was not refused."""
        self.unsettled: Unsettled | None = None
        self.again_at: float | None = None
        """Monotonic seconds: until then what was rolled back is left alone."""
        self.differs_since: float | None = None
        """Monotonic seconds, since the files hold something else than is served."""
        self.alarmed = False
        self.stage: Stage | None = None
        """The last that was told to the operator."""
        self.unwritten: dict[str, str] = {}
        """What the state directory did not take, and was said to be missing there; why."""
        self.last: Mapping[str, Any] | None = None
        """What the audit says of the last change."""

    @property
    def path(self) -> str:
        return f"certificates[{self.index}]"

    @property
    def files(self) -> list[str]:
        entry = self.entry
        return [file for file in (entry.chain, entry.key, entry.password_file) if file is not None]

    def move(self, state: State) -> None:
        """Enter `state`. Raises WrongStep."""
        was, self.state = self.state, step(self.state, state)
        data = {"certificate": self.name, "state": state.value, "was": was.value}
        logger.debug("a certificate changes its state", extra={"data": data})

    def settled(self) -> None:
        """The files hold what is served."""
        if self.state is not State.ACTIVE:
            self.move(State.ACTIVE)
        self.refusal = self.unsettled = self.again_at = self.differs_since = None
        self.alarmed = False

    def differs(self, now: float) -> None:
        """The files hold something else; `now`: monotonic seconds."""
        if self.differs_since is None:
            self.differs_since = now
        if self.state in (State.ACTIVE, State.REJECTED, State.ROLLED_BACK):
            self.move(State.CHANGED)

    def unsettle(self, problems: Sequence[Problem], now: float) -> None:
        """The files are not whole, for these reasons; they are to be looked at again."""
        if self.state is State.CHANGED:
            self.move(State.SETTLING)
        self.refusal = None
        if self.unsettled is None:
            self.unsettled = Unsettled(problems, now, now + FIRST_RETRY)
            return
        unsettled = self.unsettled
        unsettled.problems = problems
        if now >= unsettled.next_look:  # looks for other reasons do not make the waits longer
            unsettled.retry = min(LONGEST_RETRY, unsettled.retry * 2)
            unsettled.next_look = now + unsettled.retry

    def refuse(self, refusal: Refusal) -> None:
        """What the files hold is whole and shall not be served."""
        self.unsettled = None
        self.refusal = refusal
        self.move(State.REJECTED)

    def rolled_back(self, refusal: Refusal, now: float) -> None:
        """What the files hold was served, and given up; it shall rest before it is tried again."""
        self.refusal = refusal
        self.again_at = now + REST
        self.move(State.ROLLED_BACK)

    def leaves_alone(self, digest: str, now: float, wall: datetime) -> bool:
        """Whether this content of the files is not to be taken unless somebody asks for it.

        `now`: monotonic seconds; `wall`: the date.
        """
        if self.refusal is None or self.refusal.digest != digest:
            return False
        rests = self.again_at is not None and now < self.again_at
        return rests or holds(self.refusal, self.active.certificate, wall)

    @property
    def next_look(self) -> float | None:
        """Monotonic seconds: when the files are to be looked at, whether they change or not."""
        return self.unsettled.next_look if self.unsettled is not None else self.again_at

    def is_alarming(self, now: float) -> bool:
        """Whether something else than the files hold is served for too long."""
        return self.differs_since is not None and now - self.differs_since >= ALARM

    def troubles(self, now: float, wall: datetime) -> list[str]:
        """Why it is not as it should be, for `botproxy health`; empty when all is well."""
        found = []
        if self.refusal is not None:
            found.append(f"{self.name}: the files are refused ({self.refusal.rule}): {self.refusal.says}")
        elif self.unsettled is not None and (self.unsettled.said or self.is_alarming(now)):
            found.append(f"{self.name}: the files cannot be used: {self.unsettled.problems[0]}")
        elif self.is_alarming(now):
            found.append(f"{self.name}: what is served is not what the files hold")
        if self.active.number == 0:
            found.append(f"{self.name}: what is served could not be kept in the state directory")
        for what, why in self.unwritten.items():
            if what in _UNWRITTEN:
                found.append(f"{self.name}: {_UNWRITTEN[what]}: {why}")
        at = stage(self.active.certificate, wall)
        if at in (Stage.LATE, Stage.LAST, Stage.EXPIRED, Stage.NOT_YET):
            found.append(f"{self.name}: the certificate that is served is {at.value.replace('_', ' ')}")
        return found

    def status(self, now: float, wall: datetime) -> dict[str, Any]:
        """Everything about it, for `botproxy cert status`; no secret."""
        served, unsettled = self.active.certificate, self.unsettled
        return {
            "name": self.name,
            "path": self.path,
            "chain": self.entry.chain,
            "key": self.entry.key,
            "state": self.state.value,
            "generation": self.active.number,
            "since": self.active.since.isoformat(),
            **describe(served),
            "renewal_due": renewal_due(served).isoformat(),
            "stage": stage(served, wall).value,
            "matches_files": self.differs_since is None,
            "differs_seconds": None if self.differs_since is None else round(now - self.differs_since, 1),
            "refused": None
            if self.refusal is None
            else {
                "rule": self.refusal.rule,
                "says": self.refusal.says,
                "hint": self.refusal.fix,
                "since": self.refusal.since,
            },
            "unsettled": None
            if unsettled is None
            else [{"problem": str(problem), "hint": problem.hint} for problem in unsettled.problems],
            "last": self.last,
        }


def holds(refusal: Refusal, served: Certificate, now: datetime) -> bool:
    """Whether a refusal is final while `served` is served.

    When that has expired meanwhile, what was refused is better than nothing. Only an operator can have
    gone back to one that had expired already.
    """
    if not refusal.final or is_fine(served, now):
        return refusal.final
    try:
        since = datetime.fromisoformat(refusal.since)
        return refusal.rule == "went_back" and not is_fine(served, since)
    except (ValueError, TypeError):  # it comes from the disk
        return False


def describe(certificate: Certificate) -> dict[str, Any]:
    """What identifies a certificate, for people and for the audit."""
    return {
        "names": list(certificate.names),
        "issuer": certificate.issuer,
        "serial": serial_text(certificate.serial),
        "key_type": certificate.key_type,
        "not_before": certificate.not_before.isoformat(),
        "not_after": certificate.not_after.isoformat(),
        "fingerprint": certificate.fingerprint,
        "spki": certificate.spki,
    }


def serial_text(serial: int) -> str:
    """A serial number as openssl and CT sites write it: whole bytes, hexadecimal."""
    digits = f"{serial:x}"
    return digits if len(digits) % 2 == 0 else f"0{digits}"
