"""What is served from the start: what the files hold, or the last good certificate.

A start is the worst moment to find the files broken. When they cannot be served, or hold
something worse than what was accepted before, the last good generation of the store is
served, loudly. Only where there is none the start fails, with every problem at once.
Nothing is written here.

Before: `keeper.process`. After: `keeper.renewal`, which goes on from here.
"""

from __future__ import annotations

import logging
import ssl
import time
from datetime import datetime
from typing import TYPE_CHECKING

from botproxy.errors import ConfigError, Problem
from botproxy.keeper.appraisal import objection
from botproxy.keeper.lineage import Active, Lineage, holds
from botproxy.keeper.load import parse_pair
from botproxy.keeper.naming import names_of
from botproxy.keeper.source import Pair, read_pair, read_password
from botproxy.keeper.store import Generation, Refusal, Store
from botproxy.tls.rules import Finding

if TYPE_CHECKING:
    from botproxy.config.schema import Certificate as Entry
    from botproxy.config.schema import Config

logger = logging.getLogger(__name__)


def begin(config: Config, store: Store, listener: ssl.SSLContext, now: datetime) -> list[Lineage]:
    """Every configured certificate with what is served of it. Raises ConfigError where there is nothing."""
    lineages: list[Lineage] = []
    problems: list[Problem] = []
    for index, name in enumerate(names_of(config.certificates)):
        entry = config.certificates[index]
        try:
            lineages.append(_begin(index, name, entry, store, listener, now))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return lineages


def last_good(store: Store, name: str, entry: Entry) -> Active | None:
    """The current generation of a certificate, or an older one that can still be read."""
    for generation in store.candidates(name):
        if (active := restore(generation, entry)) is not None:
            return active
        data = {"certificate": name, "generation": generation.number}
        logger.warning(
            "a kept certificate cannot be used (other files, or another password)", extra={"data": data}
        )
    return None


def restore(generation: Generation, entry: Entry) -> Active | None:
    """A generation as it is served; None when it cannot be, or came from other files."""
    source = generation.meta.get("source")
    if source != {"chain": entry.chain, "key": entry.key}:
        return None
    password = generation.password if generation.password is not None else read_password(entry)
    try:
        pair = Pair(generation.chain, generation.key, password, ())
        certificate = parse_pair(entry, "", pair)
        since = datetime.fromisoformat(generation.meta["accepted"])
    except (ConfigError, KeyError, ValueError, TypeError):
        return None
    if not certificate.key_matches:
        return None
    return Active(certificate, pair.chain, pair.key, pair.digest, generation.number, since, password=password)


def refusal_of(finding: Finding, digest: str, now: datetime) -> Refusal:
    """The memory of a finding about what the files hold."""
    since = now.isoformat(timespec="seconds")
    return Refusal(digest, finding.rule, finding.sentence, finding.fix, since, final=False)


# Private


def _begin(
    index: int, name: str, entry: Entry, store: Store, listener: ssl.SSLContext, now: datetime
) -> Lineage:
    path = f"certificates[{index}]"
    last = last_good(store, name, entry)
    try:
        pair = read_pair(entry, path)
        certificate = parse_pair(entry, path, pair)
    except ConfigError as error:
        if last is None:
            raise
        return _unsettled(Lineage(index, name, entry, last), error)
    if last is not None and certificate.is_same(last.certificate):
        return Lineage(index, name, entry, last.respelled(certificate, pair))
    known = store.refusal(name)
    refused = known is not None and known.digest == pair.digest
    if last is not None and known is not None and refused and holds(known, last.certificate, now):
        return _refused(Lineage(index, name, entry, last), known)
    finding = objection(
        certificate, last.certificate if last else None, now, listener, forced=entry.allow_regression
    )
    if finding is None:
        active = Active(certificate, pair.chain, pair.key, pair.digest, 0, now, pair.findings, pair.password)
        return Lineage(index, name, entry, active)
    if last is None:
        raise ConfigError([Problem(entry.chain, path, finding.sentence, finding.fix)])
    if finding.rule == "key_mismatch":
        problem = Problem(entry.chain, path, finding.sentence, finding.fix)
        return _unsettled(Lineage(index, name, entry, last), ConfigError([problem]))
    return _refused(Lineage(index, name, entry, last), refusal_of(finding, pair.digest, now))


def _unsettled(lineage: Lineage, error: ConfigError) -> Lineage:
    now = time.monotonic()
    lineage.differs(now)
    lineage.unsettle(error.problems, now)
    return lineage


def _refused(lineage: Lineage, refusal: Refusal) -> Lineage:
    lineage.differs(time.monotonic())
    lineage.refuse(refusal)
    return lineage
