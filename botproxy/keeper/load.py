"""The configured certificates, parsed and judged together; with every problem at once.

Shared by the keeper and by `botproxy check`: both see the same findings. What makes a
certificate unservable is a problem, the rest is said. Which certificate may replace which
is `keeper.appraisal`'s decision.

Before: `keeper.source`, `tls.certificates`, `tls.rules`. After: `keeper.boot`, `cli.check`.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from botproxy.errors import ConfigError, Problem
from botproxy.keeper.appraisal import distrusted_chain, system_roots
from botproxy.keeper.source import Pair, read_pair
from botproxy.tls import rules
from botproxy.tls.certificates import Certificate, assemble
from botproxy.tls.context import CertificateSet, hand
from botproxy.tls.pem import CertificateError, read_chain, read_key
from botproxy.tls.proof import ProofFailed, prove
from botproxy.tls.rules import Finding

if TYPE_CHECKING:
    from botproxy.config.schema import Certificate as Entry
    from botproxy.config.schema import Config


@dataclass(frozen=True, slots=True)
class Located:
    """A finding and the certificate it is about."""

    path: str
    """`certificates[0]`."""
    file: str
    """Its chain file."""
    finding: Finding


@dataclass(frozen=True, slots=True)
class Loaded:
    """A certificate, and where the configuration speaks of it."""

    index: int
    """In the configuration file."""
    entry: Entry
    certificate: Certificate

    @property
    def path(self) -> str:
        return f"certificates[{self.index}]"


@dataclass(frozen=True, slots=True)
class Examined:
    """The certificates that can be read, and everything wrong with them and with the others."""

    certificates: tuple[Loaded, ...]
    findings: tuple[Located, ...]
    problems: tuple[Problem, ...]
    """Why the others cannot be read."""

    def servable(self) -> list[Certificate]:
        """Those that no finding stops."""
        stopped = {located.path for located in self.findings if located.finding.stops}
        return [each.certificate for each in self.certificates if each.path not in stopped]


def examine_certificates(
    config: Config, now: datetime, positions: Sequence[int] = (), *, complete: bool = True
) -> Examined:
    """Every certificate of `config` that can be read, judged; and why the others cannot.

    `positions` are their indices in the file, where that has others that are left out here; it is
    `complete` when it has not.
    """
    problems: list[Problem] = []
    loaded: list[Loaded] = []
    findings: list[Located] = []
    files = dict(zip(positions or range(len(config.certificates)), config.certificates, strict=True))
    for index, entry in files.items():
        path = f"certificates[{index}]"
        try:
            pair = read_pair(entry, path)
            loaded.append(Loaded(index, entry, parse_pair(entry, path, pair)))
        except ConfigError as error:
            problems += error.problems
            continue
        findings += (Located(path, entry.chain, finding) for finding in pair.findings)
    findings += judge(config, loaded, now, everything=complete and not problems)
    return Examined(tuple(loaded), tuple(findings), tuple(problems))


def parse_pair(entry: Entry, path: str, pair: Pair) -> Certificate:
    """The certificate in what was read for `entry`, which stands at `path`.

    Raises ConfigError with a problem for each file that is not what it should be.
    """
    problems: list[Problem] = []
    chain = key = None
    try:
        chain = read_chain(pair.chain)
    except CertificateError as error:
        problems.append(_problem(entry, path, error))
    try:
        key = read_key(pair.key, pair.password)
    except CertificateError as error:
        problems.append(_problem(entry, path, error))
    if chain is None or key is None:
        raise ConfigError(problems)
    try:
        return assemble(chain, key)
    except CertificateError as error:
        raise ConfigError([_problem(entry, path, error)]) from None


def judge(
    config: Config, loaded: Sequence[Loaded], now: datetime, *, everything: bool = True
) -> list[Located]:
    """What is to be said about certificates together.

    `everything`: no certificate is missing in `loaded`, one that may have the name of a host.
    """
    certificates = [each.certificate for each in loaded]
    hosts = dict.fromkeys(host for route in config.routes for host in route.hosts)
    # Who asks for a name that no certificate covers gets the first one.
    uncovered = [host for host in hosts if not any(certificate.covers(host) for certificate in certificates)]
    roots = system_roots()
    shadowed = rules.overshadowed(certificates)
    every_host = any(not route.hosts for route in config.routes)
    unused = () if every_host else rules.unused(certificates, list(hosts))
    located = []
    for position, each in enumerate(loaded):
        certificate = each.certificate
        findings = rules.examine(certificate, now, uncovered if everything and position == 0 else (), roots)
        if position in shadowed:
            findings.append(
                Finding(
                    "overshadowed",
                    "warning",
                    "it is never served: earlier certificates with the same type of key have all its names",
                    "remove the one that is not wanted from the configuration",
                )
            )
        if position in unused:
            findings.append(
                Finding(
                    "unused_certificate",
                    "warning",
                    "no route has a host that it covers: no request to its names is served",
                    "name one of its hosts in `routes`, or remove it from the configuration",
                )
            )
        if not any(finding.severity == "error" for finding in findings):
            findings += filter(None, [distrusted_chain(certificate, roots)])
        located += [Located(each.path, each.entry.chain, finding) for finding in findings]
    return located


def prove_certificates(config: Config, certificates: Sequence[Certificate], listener: ssl.SSLContext) -> None:
    """Load everything into OpenSSL and shake hands with it, as a worker will.

    `listener` is only read. Raises ConfigError when OpenSSL cannot serve what was loaded.
    """
    with ExitStack() as stack:
        handed = [hand(certificate) for certificate in certificates]
        for each in handed:
            stack.callback(os.close, each.fd)
        try:
            prove(CertificateSet.load(handed, config.tls.strict_sni), listener)
        except (ssl.SSLError, ProofFailed) as error:
            reason = error.reason if isinstance(error, ssl.SSLError) else str(error)
            raise ConfigError(
                [
                    Problem(
                        where="",
                        path="certificates",
                        says=f"OpenSSL cannot serve the configured certificates: {reason}",
                        hint="get a certificate with an ECDSA P-256 or RSA 2048 key",
                    )
                ]
            ) from None


# Private


def _problem(entry: Entry, path: str, error: CertificateError) -> Problem:
    file = entry.chain if error.part == "chain" else entry.key
    return Problem(where=file, path=f"{path}.{error.part}", says=error.sentence, hint=error.fix)
