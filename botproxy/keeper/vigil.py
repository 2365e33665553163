"""What only time brings about: expiry that comes nearer, files that stay wrong, a disk that stays full.

Everything is said once when it begins, never every few seconds, and by the lifetime of
the certificate, not by fixed days (`tls.lifetime`). Nothing is changed here but the memory
of what was said.

Before: `keeper.renewal`. After: the operator log.
"""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from botproxy.keeper.lineage import ALARM, PATIENCE, Lineage
from botproxy.tls.lifetime import Stage, span, stage
from botproxy.tls.rules import Finding

logger = logging.getLogger(__name__)

_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO}
_STAGES = {
    Stage.DUE: (logging.WARNING, "the renewal of a certificate is due"),
    Stage.LATE: (logging.ERROR, "a certificate should have been renewed long ago"),
    Stage.LAST: (logging.ERROR, "a certificate is about to expire"),
    Stage.EXPIRED: (logging.ERROR, "a certificate has expired, clients refuse it"),
    Stage.NOT_YET: (logging.ERROR, "a certificate is not valid yet, clients refuse it"),
}
_RENEW = "certbot renew, and see why it has not: certbot certificates"
_CLOCK = "check the clock of this machine: timedatectl"


def look_at(lineage: Lineage, now: float, wall: datetime) -> None:
    """Say what time has brought. `now`: monotonic seconds; `wall`: the date."""
    _expiry(lineage, wall)
    unsettled = lineage.unsettled
    if unsettled is not None and not unsettled.said and now - unsettled.since >= PATIENCE:
        unsettled.said = True
        problem = unsettled.problems[0]
        data = {"certificate": lineage.name, "problem": str(problem), "hint": problem.hint or ""}
        logger.error(
            "the certificate files cannot be used, the current one is served on", extra={"data": data}
        )
    if lineage.is_alarming(now) and not lineage.alarmed:
        lineage.alarmed = True
        alarm = {"certificate": lineage.name, "seconds": int(ALARM), "hint": "botproxy cert status says why"}
        logger.error("what is served is not what the certificate files hold", extra={"data": alarm})


def say_finding(name: str, file: str, finding: Finding) -> None:
    """One thing about a certificate that is served."""
    data = {
        "certificate": name,
        "file": file,
        "rule": finding.rule,
        "says": finding.sentence,
        "hint": finding.fix,
    }
    logger.log(_LEVELS[finding.severity], "about a certificate", extra={"data": data})


def say_last_good(lineage: Lineage) -> None:
    """At the start: the files cannot be served, an earlier certificate is."""
    if lineage.differs_since is None:
        return
    data: dict[str, object] = {
        "certificate": lineage.name,
        "generation": lineage.active.number,
        "expires": lineage.active.certificate.not_after.isoformat(),
    }
    if lineage.refusal is not None:
        refusal = lineage.refusal
        data |= {"rule": refusal.rule, "says": refusal.says, "hint": refusal.fix}
    elif lineage.unsettled is not None:
        problem = lineage.unsettled.problems[0]
        lineage.unsettled.said = True
        data |= {"problem": str(problem), "hint": problem.hint or ""}
    logger.error("the certificate files cannot be served, the last good certificate is", extra={"data": data})


def complain_of_disk(lineage: Lineage, what: str, directory: Path, error: OSError) -> None:
    """`what` did not get into the state directory, or out of it. Said once until it does."""
    why = error.strerror or str(error)
    data = {
        "certificate": lineage.name,
        "what": what,
        "directory": str(directory),
        "why": why,
        "hint": f"see what is wrong: df -h {directory}, ls -ld {directory}",
    }
    phrase = "a certificate is served, and cannot be written down"
    if what == "removal":
        phrase = "the older keys of a certificate cannot be removed"
    if what not in lineage.unwritten:
        logger.error(phrase, extra={"data": data})
    lineage.unwritten[what] = why


def praise_disk(lineage: Lineage, what: str) -> None:
    """The state directory took `what`."""
    if what in lineage.unwritten:
        del lineage.unwritten[what]
        data = {"certificate": lineage.name, "what": what}
        logger.info("a certificate can be written down again", extra={"data": data})


def note_stage(lineage: Lineage, wall: datetime) -> None:
    """The findings about what is served were just said, and with them how near its end is."""
    now = stage(lineage.active.certificate, wall)
    lineage.stage = Stage.DUE if now in (Stage.LATE, Stage.LAST) else now


# Private


def _expiry(lineage: Lineage, wall: datetime) -> None:
    certificate = lineage.active.certificate
    was, lineage.stage = lineage.stage, stage(certificate, wall)
    if lineage.stage is was:
        return
    left = certificate.not_after - wall
    data = {"certificate": lineage.name, "expires": certificate.not_after.isoformat()}
    if lineage.stage in _STAGES:
        level, phrase = _STAGES[lineage.stage]
        if lineage.stage is not Stage.EXPIRED:
            data["left"] = span(left)
        data["hint"] = _CLOCK if lineage.stage is Stage.NOT_YET else _RENEW
        logger.log(level, phrase, extra={"data": data})
    elif was in (Stage.EXPIRED, Stage.NOT_YET):
        logger.info("a certificate is valid again", extra={"data": data})
