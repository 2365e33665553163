"""`botproxy check`: everything wrong with a configuration and its certificates, at once.

Reads the files that `botproxy serve` would read and judges them by the same rules,
but changes nothing and opens no port. Exit code 2: the configuration is wrong;
1: it is right, and a certificate it names is not; 0: fine, though there may be
warnings. Text for people, `--json` with stable keys for machines.

Before: `config.load`, `keeper.load`, `upstream.dial`, `server.privileges`.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import click

from botproxy.cli import report
from botproxy.cli.verb import Verb, WrongUsage
from botproxy.config import environment
from botproxy.config.load import Draft, draft
from botproxy.errors import ConfigError, Problem
from botproxy.keeper.load import Loaded, Located, examine_certificates, prove_certificates
from botproxy.keeper.paths import steps
from botproxy.server.privileges import found_account, worker_account
from botproxy.tls.context import listener_context
from botproxy.upstream.dial import verifications

FINE, CERTIFICATES_WRONG, CONFIGURATION_WRONG = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Remark:
    """One finding about one certificate."""

    rule: str
    severity: str
    """error, warning or info."""
    says: str
    hint: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One certificate, as it is reported."""

    path: str
    """`certificates[0]`."""
    file: str
    names: tuple[str, ...]
    issuer: str
    key_type: str
    not_before: str
    not_after: str
    """ISO 8601, UTC."""
    days_left: int
    """Whole days; negative when it has expired."""
    fingerprint: str
    findings: tuple[Remark, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found."""

    exit_code: int
    problems: tuple[Problem, ...]
    certificates: tuple[Entry, ...]


@click.command(
    cls=Verb,
    help="check a configuration and its certificates; changes nothing, opens no port",
    examples=(
        ("botproxy check /etc/botproxy/botproxy.yaml", "what is wrong, and what to write instead"),
        ("botproxy check --json botproxy.yaml | jq .ok", "the same for machines"),
    ),
)
@click.argument("config", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
def command(config: str | None, as_json: bool) -> int:
    file = config or environment.file(os.environ)
    if file is None and not environment.variables(os.environ):
        raise WrongUsage('expected "CONFIG", a configuration file, found none')
    verdict = examine(file, os.environ, datetime.now(UTC))
    if as_json:
        _print_json(verdict)
    else:
        _print_text(file or "environment", verdict)
    return verdict.exit_code


def examine(path: str | None, variables: Mapping[str, str], now: datetime) -> Verdict:
    """Everything to say about the configuration at `path`, `variables` over it, and the files it names.

    A mistake in one place hides nothing elsewhere: what is right is examined all the same.
    """
    try:
        found = draft(path, variables)
    except ConfigError as wrong:
        return Verdict(CONFIGURATION_WRONG, tuple(wrong.problems), ())
    problems = [*found.problems, *_around(found)]
    examined = examine_certificates(found.config, now, found.positions, complete=found.complete)
    unservable = list(examined.problems)
    servable = examined.servable()
    if servable:
        try:
            prove_certificates(found.config, servable, listener_context(found.config.tls))
        except ConfigError as wrong:
            unservable += wrong.problems
    entries = tuple(_entry(loaded, examined.findings, now) for loaded in examined.certificates)
    failed = unservable or any(located.finding.severity == "error" for located in examined.findings)
    exit_code = CONFIGURATION_WRONG if problems else CERTIFICATES_WRONG if failed else FINE
    return Verdict(exit_code, (*problems, *unservable), entries)


# Private


def _around(draft: Draft) -> Iterator[Problem]:
    """What the configuration expects of this machine, and does not find there."""
    config = draft.config
    try:
        verifications(config.upstreams)
    except ConfigError as wrong:
        yield from wrong.problems
    if config.acme_webroot is None:
        pass
    elif not os.path.isdir(config.acme_webroot):
        found = "something else" if os.path.exists(config.acme_webroot) else "nothing"
        yield Problem(
            draft.where(("acme_webroot",)),
            "acme_webroot",
            f'expected a directory, found {found} at "{config.acme_webroot}"',
            "name the directory given to certbot --webroot -w, or make it: "
            f"mkdir -p {shlex.quote(config.acme_webroot)}",
        )
    elif (closed := _closed_to_workers(config.acme_webroot, config.user)) is not None:
        yield Problem(
            draft.where(("acme_webroot",)),
            "acme_webroot",
            f'expected a directory that the workers can enter, found "{closed}" closed to them',
            f"chmod o+x {shlex.quote(closed)}",
        )
    yield from _account(draft)


def _closed_to_workers(directory: str, user: str | None) -> str | None:
    """The first component on the way into `directory` that the workers' account cannot enter."""
    try:
        account = worker_account(user)
    except ConfigError:
        return None  # which has a problem of its own
    if account is None:
        return None
    for _, entry in steps(directory):
        status = os.stat(entry)
        bit = {account.uid: stat.S_IXUSR}.get(status.st_uid) or {account.gid: stat.S_IXGRP}.get(status.st_gid)
        if stat.S_ISDIR(status.st_mode) and not status.st_mode & (bit or stat.S_IXOTH):
            return entry
    return None


def _account(draft: Draft) -> Iterator[Problem]:
    """One that is named is looked for, whoever checks; root has to name one."""
    user = draft.config.user
    if user is None and os.geteuid() != 0:
        return
    try:
        found_account(user)
    except ConfigError as wrong:
        for problem in wrong.problems:
            yield replace(problem, where=draft.where(("user",)))


def _entry(loaded: Loaded, findings: Sequence[Located], now: datetime) -> Entry:
    certificate = loaded.certificate
    return Entry(
        path=loaded.path,
        file=loaded.entry.chain,
        names=certificate.names,
        issuer=certificate.issuer,
        key_type=certificate.key_type,
        not_before=certificate.not_before.isoformat(),
        not_after=certificate.not_after.isoformat(),
        days_left=(certificate.not_after - now).days,
        fingerprint=certificate.fingerprint,
        findings=tuple(
            Remark(
                located.finding.rule,
                located.finding.severity,
                located.finding.sentence,
                located.finding.fix,
            )
            for located in findings
            if located.path == loaded.path
        ),
    )


def _print_json(verdict: Verdict) -> None:
    answer = {
        "ok": verdict.exit_code == FINE,
        "problems": [asdict(problem) for problem in verdict.problems],
        "certificates": [asdict(entry) for entry in verdict.certificates],
    }
    click.echo(json.dumps(answer, indent=2))


def _print_text(path: str, verdict: Verdict) -> None:
    for entry in verdict.certificates:
        click.echo(report.printable(f"{entry.path}: {', '.join(entry.names) or 'no names'}"))
        for label, value in (
            ("file", entry.file),
            ("issuer", entry.issuer),
            ("key", entry.key_type.upper()),
            ("valid", _validity(entry)),
        ):
            click.echo(report.printable(f"  {label:<8}{value}"))
    for entry in verdict.certificates:
        for remark in entry.findings:
            report.say(remark.severity, f"{entry.file}: {entry.path}: {remark.says}")
            report.say("hint", remark.hint)
    for problem in verdict.problems:
        report.error(str(problem), problem.hint)
    click.echo(report.printable(f"{path}: {_summary(verdict)}"))


def _validity(entry: Entry) -> str:
    until = f"until {entry.not_after[:10]}"
    if entry.days_left < 0:
        return f"{until}, expired"
    return f"{until}, {entry.days_left} {'day' if entry.days_left == 1 else 'days'} left"


def _summary(verdict: Verdict) -> str:
    severities = ["error" for _ in verdict.problems]
    severities += [remark.severity for entry in verdict.certificates for remark in entry.findings]
    counts = [_counted(severities, kind) for kind in ("error", "warning") if kind in severities]
    return ", ".join(counts) or "fine"


def _counted(severities: Sequence[str], kind: str) -> str:
    count = severities.count(kind)
    return f"{count} {kind}" if count == 1 else f"{count} {kind}s"
