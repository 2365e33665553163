"""The configured certificates, read, parsed and judged; with every problem at once.

Shared by the keeper at its start and by `botproxy check`: both see the same findings.
Whatever makes a certificate unservable ends in one `ConfigError`; the rest is reported
and the certificates are served.

Before: `keeper.source`, `tls.certificates`, `tls.rules`. After: `keeper.process`.
"""

from __future__ import annotations

import os
import ssl
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning

from botproxy.config.schema import Certificate as Entry
from botproxy.config.schema import Config
from botproxy.errors import ConfigError, Problem
from botproxy.keeper.source import read_pair
from botproxy.tls import rules
from botproxy.tls.certificates import Certificate, assemble
from botproxy.tls.context import CertificateSet, ProbeFailed, hand, prove
from botproxy.tls.pem import CertificateError, read_chain, read_key
from botproxy.tls.rules import Finding


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
    """The certificates, in the order of the configuration, and what is to be said about them."""

    certificates: tuple[Certificate, ...]
    findings: tuple[Located, ...]


@dataclass(frozen=True, slots=True)
class Examined:
    """The certificates that can be read, and everything wrong with them and with the others."""

    certificates: tuple[tuple[int, Certificate], ...]
    """Each with its index in `Config.certificates`."""
    findings: tuple[Located, ...]
    problems: tuple[Problem, ...]
    """Why the others cannot be read."""

    def servable(self) -> Loaded:
        """Those that no finding stops."""
        stopped = {located.path for located in self.findings if located.finding.stops}
        fine = (each for index, each in self.certificates if f"certificates[{index}]" not in stopped)
        return Loaded(tuple(fine), self.findings)


def load_certificates(config: Config, now: datetime) -> Loaded:
    """Every certificate of `config`. Raises ConfigError with all problems that stop the start."""
    examined = examine_certificates(config, now)
    problems = [
        *examined.problems,
        *(
            Problem(located.file, located.path, located.finding.sentence, located.finding.fix)
            for located in examined.findings
            if located.finding.stops
        ),
    ]
    if problems:
        raise ConfigError(problems)
    return examined.servable()


def examine_certificates(config: Config, now: datetime, positions: Sequence[int] = ()) -> Examined:
    """Every certificate of `config` that can be read, judged; and why the others cannot.

    `positions` are their indices in the file, where that has others that are left out here.
    """
    problems: list[Problem] = []
    loaded: list[tuple[int, Certificate]] = []
    findings: list[Located] = []
    files: dict[int, str] = {}
    for index, entry in zip(positions or range(len(config.certificates)), config.certificates, strict=True):
        path = f"certificates[{index}]"
        files[index] = entry.chain
        try:
            certificate, about_files = _load(entry, path)
        except ConfigError as error:
            problems += error.problems
            continue
        loaded.append((index, certificate))
        findings += (Located(path, entry.chain, finding) for finding in about_files)
    everything = not problems and list(files) == list(range(len(files)))
    findings += _judge(config, loaded, files, now, everything=everything)
    return Examined(tuple(loaded), tuple(findings), tuple(problems))


def prove_certificates(config: Config, loaded: Loaded, listener: ssl.SSLContext) -> None:
    """Load everything into OpenSSL and shake hands with it, as a worker will.

    `listener` is only read. Raises ConfigError when OpenSSL cannot serve what was loaded.
    """
    with ExitStack() as stack:
        handed = [hand(certificate) for certificate in loaded.certificates]
        for each in handed:
            stack.callback(os.close, each.fd)
        try:
            prove(CertificateSet.load(handed, config.tls.strict_sni), listener)
        except (ssl.SSLError, ProbeFailed) as error:
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


def system_roots() -> list[x509.Certificate] | None:
    """The CAs that this system trusts; None when it has no list of them."""
    roots = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    with warnings.catch_warnings():
        # Old roots with odd serial numbers are the distribution's affair, not the operator's.
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        for der in context.get_ca_certs(binary_form=True):
            try:
                roots.append(x509.load_der_x509_certificate(der))
            except ValueError:
                continue  # OpenSSL is more lenient; no certificate of today leads to such a root
    return roots or None


# Private


def _load(entry: Entry, path: str) -> tuple[Certificate, tuple[Finding, ...]]:
    pair = read_pair(entry, path)
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
        return assemble(chain, key), pair.findings
    except CertificateError as error:
        raise ConfigError([_problem(entry, path, error)]) from None


def _problem(entry: Entry, path: str, error: CertificateError) -> Problem:
    file = entry.chain if error.part == "chain" else entry.key
    return Problem(where=file, path=f"{path}.{error.part}", says=error.sentence, hint=error.fix)


def _judge(
    config: Config,
    loaded: Sequence[tuple[int, Certificate]],
    files: Mapping[int, str],
    now: datetime,
    *,
    everything: bool,
) -> list[Located]:
    """`everything`: no certificate is missing in `loaded`, one that may have the name of a host."""
    certificates = [certificate for _, certificate in loaded]
    hosts = dict.fromkeys(host for route in config.routes for host in route.hosts)
    # Who asks for a name that no certificate covers gets the first one.
    uncovered = [host for host in hosts if not any(certificate.covers(host) for certificate in certificates)]
    roots = system_roots()
    shadowed = rules.overshadowed(certificates)
    every_host = any(not route.hosts for route in config.routes)
    unused = () if every_host else rules.unused(certificates, list(hosts))
    located = []
    for position, (index, certificate) in enumerate(loaded):
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
        located += [Located(f"certificates[{index}]", files[index], f) for f in findings]
    return located
