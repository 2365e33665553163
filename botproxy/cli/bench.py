"""`botproxy bench`: what a server on this machine achieves, measured from this machine.

`handshake` counts full and resumed TLS handshakes in each version that is offered. Client and server share
the processors, so the client says how much of them it took itself. Certificates are judged and reported,
never required: those of development are self-signed. Exit codes: 0 every handshake succeeded, 1 one did not
or nobody answered, 2 usage, which includes a server that may not be measured (`cli.target`), 130 interrupted,
after what was counted until then. A version is not offered where the server ends its handshake; where it says
nothing, or refuses the client behind it, that is a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args

import click
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from botproxy.cli import report
from botproxy.cli.handshakes import VERSIONS, First, Kind, Limits, Tally, first, in_words, measure, percentile
from botproxy.cli.target import Target, UnknownHostError, target
from botproxy.cli.verb import Entry, Verb, Verbs

MOST_SECONDS, MOST_COUNT, MOST_CLIENTS = 30.0, 5000, 16
"""For each measure. All four together use fewer ports than Linux has for connections to one address."""
SLOW_RATE, SLOW_SECONDS = 10.0, 5.0
"""Handshakes a second, one at a time, and seconds for each measure, of a server elsewhere."""
INTERRUPTED = 130
"""The exit code that shells give to what Ctrl-C ended."""

command = Verbs(
    table={"handshake": Entry("TLS handshakes per second of a server", "botproxy.cli.bench:handshake")},
    examples=(("botproxy bench handshake https://localhost:8443", "what the demo achieves"),),
    help="what a server on this machine achieves",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the result."""

    shown: First
    kind: Kind
    tally: Tally | None
    """None: the server does not offer this kind."""

    @property
    def failed(self) -> bool:
        return self.tally is not None and (bool(self.tally.errors) or not self.tally.latencies)


@dataclass(slots=True)
class Result:
    """What there is to say, as far as it is known."""

    server: Target
    limits: Limits
    shown: dict[str, First] = field(default_factory=dict)
    not_offered: dict[str, str] = field(default_factory=dict)
    """Versions, and in which words the server declined."""
    failed: dict[str, str] = field(default_factory=dict)
    """Versions of which the first handshake did not show whether they are offered."""
    measured: list[Measured] = field(default_factory=list)
    interrupted: bool = False

    @property
    def ok(self) -> bool:
        return bool(self.shown) and not (
            self.interrupted or self.failed or any(each.failed for each in self.measured)
        )

    @property
    def distrust(self) -> str | None:
        return next((each.distrust for each in self.shown.values()), None)


@click.command(
    cls=Verb,
    help="count TLS handshakes, full and resumed, of a server on this machine",
    examples=(
        (
            "botproxy bench handshake https://localhost:8443",
            "every version that it offers, 3 s for each kind",
        ),
        (
            "botproxy bench handshake --json https://localhost:8443 | jq '.measures[].per_second'",
            "for machines",
        ),
        (
            "botproxy bench handshake --own-host bot.example.com https://bot.example.com",
            "latencies of a server of yours elsewhere, at 10 handshakes/s at most",
        ),
    ),
)
@click.argument("url")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, MOST_SECONDS),
    default=3.0,
    metavar="N",
    help=f"For each of the four measures, at most {MOST_SECONDS:g}.  [3]",
)
@click.option(
    "--count",
    type=click.IntRange(1, MOST_COUNT),
    default=MOST_COUNT,
    metavar="N",
    help=f"End each after so many handshakes.  [{MOST_COUNT}]",
)
@click.option(
    "--clients",
    type=click.IntRange(1, MOST_CLIENTS),
    default=4,
    metavar="N",
    help=f"How many ask at the same time, at most {MOST_CLIENTS}.  [4]",
)
@click.option("--own-host", metavar="HOST", help="Repeat the host of a server of yours that runs elsewhere.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
def handshake(url: str, seconds: float, count: int, clients: int, own_host: str | None, as_json: bool) -> int:
    try:
        with _note(f"asking {url} what it offers"):
            result = _ask(url, own_host, Limits(seconds, count, clients))
    except UnknownHostError as error:
        return _nothing(f'"{url}": {error}', 1, as_json)
    except KeyboardInterrupt:
        return _nothing("interrupted", INTERRUPTED, as_json)
    try:
        for each in _measures(result):
            result.measured.append(each)
    except KeyboardInterrupt:
        result.interrupted = True
    if as_json:
        click.echo(json.dumps(_as_json(result), indent=2))
    elif result.shown:
        _print_text(result)
    _print_errors(url, result)
    if result.interrupted:
        return INTERRUPTED
    return 0 if result.ok else 1


def permitted(asked: Limits, *, local: bool) -> Limits:
    """What becomes of `asked`: a server elsewhere gets no more than a browser would ask of it."""
    return asked if local else Limits(min(asked.seconds, SLOW_SECONDS), asked.count, 1, SLOW_RATE)


# Private


def _ask(url: str, own_host: str | None, asked: Limits) -> Result:
    """What each version shows, and why the others cannot be had. Raises UnknownHostError, WrongUsage."""
    server = target(url, own_host)
    result = Result(server, permitted(asked, local=server.local))
    for version in VERSIONS:
        try:
            result.shown[version] = first(server, version)
        except (ssl.SSLError, ConnectionResetError) as error:
            result.not_offered[version] = in_words(error)
        except OSError as error:
            result.failed[version] = in_words(error)
    if not result.shown:  # nothing to compare with: it is not a matter of versions
        result.failed |= result.not_offered
        result.not_offered = {}
    return result


def _measures(result: Result) -> Iterator[Measured]:
    """One after the other. Raises KeyboardInterrupt, behind the one that it ended."""
    for version, shown in result.shown.items():
        for kind in get_args(Kind):
            measured = _measure(result.server, shown, kind, version, result.limits)
            yield measured
            if measured.tally is not None and measured.tally.interrupted:
                raise KeyboardInterrupt


def _measure(server: Target, shown: First, kind: Kind, version: str, limits: Limits) -> Measured:
    if kind == "resumed" and shown.session is None:
        return Measured(shown, kind, None)
    with _progress(f"{version} {kind:7}") as progress:
        return Measured(shown, kind, measure(server, version, kind, limits, progress))


@contextmanager
def _note(text: str) -> Iterator[None]:
    """On a terminal, what is waited for, as long as it is; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    text = report.printable(text)[: shutil.get_terminal_size().columns - 1]
    click.echo(text, nl=False, err=True)
    try:
        yield
    finally:
        click.echo(f"\r{'':{len(text)}}\r", nl=False, err=True)


@contextmanager
def _progress(label: str) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda share: None
        return
    steps = 100
    with click.progressbar(
        length=steps, label=label, file=sys.stderr, show_eta=False, show_percent=False
    ) as bar:
        yield lambda share: bar.update(int(share * steps) - bar.pos)


def _key(der: bytes) -> str:
    """As people call it: ECDSA P-256, RSA 2048."""
    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except (ValueError, UnsupportedAlgorithm):
        return "key of an unknown kind"
    match key:
        case ec.EllipticCurvePublicKey():
            return f"ECDSA {_CURVES.get(key.curve.name, key.curve.name)}"
        case rsa.RSAPublicKey():
            return f"RSA {key.key_size}"
        case _:
            return type(key).__name__.removesuffix("PublicKey").lstrip("_")


_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


def _nothing(why: str, code: int, as_json: bool) -> int:
    """There is nothing but an exit code, and why."""
    if as_json:
        click.echo(json.dumps({"ok": False, "error": why}))
    report.error(why)
    return code


def _as_json(result: Result) -> dict[str, Any]:
    server, limits = result.server, result.limits
    return {
        "ok": result.ok,
        "interrupted": result.interrupted,
        "host": server.host,
        "port": server.port,
        "address": server.address[0],
        "on_this_machine": server.local,
        "limits": {
            "seconds": limits.seconds,
            "count": limits.count,
            "clients": limits.clients,
            "rate": limits.rate,
        },
        "processors": os.cpu_count(),
        "trusted": result.distrust is None if result.shown else None,
        "distrust": result.distrust,
        "not_offered": result.not_offered,
        "failed": result.failed,
        "measures": [_measure_as_json(each) for each in result.measured],
    }


def _measure_as_json(measured: Measured) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "protocol": measured.shown.protocol,
        "cipher": measured.shown.cipher,
        "key": _key(measured.shown.certificate),
        "kind": measured.kind,
        "offered": measured.tally is not None,
    }
    if (tally := measured.tally) is not None:
        answer |= {
            "handshakes": len(tally.latencies),
            "errors": dict(tally.errors),
            "seconds": round(tally.seconds, 3),
            "per_second": round(tally.per_second, 1),
            "client_processors": round(tally.cpu / tally.seconds, 2) if tally.seconds else 0.0,
        }
    if tally is not None and tally.latencies:
        answer |= {f"p{each}_ms": round(percentile(tally.latencies, each) * 1e3, 2) for each in (50, 99)}
    return answer


def _print_text(result: Result) -> None:
    server, limits = result.server, result.limits
    trust = "is trusted" if result.distrust is None else f"is not trusted here: {result.distrust}"
    host = f"[{server.host}]" if ":" in server.host else server.host
    lines = [f"{host}:{server.port} at {server.address[0]}; its certificate {trust}", ""]
    lines += [f"{'':17}{'per second':>10}{'p50 ms':>9}{'p99 ms':>9}{'count':>8}{'errors':>8}"]
    lines += [_line(each) for each in result.measured]
    lines += [f"{version} is not offered: {why}" for version, why in result.not_offered.items()]
    lines.append("")
    if limits.rate is not None:
        lines.append(f"not on this machine: at most {limits.rate:g} a second, so latencies count, not rates")
    elif tallies := [each.tally for each in result.measured if each.tally and each.tally.seconds]:
        took = sum(tally.cpu for tally in tallies) / sum(tally.seconds for tally in tallies)
        share = f"{took:.1f} of {os.cpu_count()} processors"
        lines.append(f"this client took {share}, and the server could not use them")
    for text in lines:
        click.echo(report.printable(text))


def _print_errors(url: str, result: Result) -> None:
    for version, why in result.failed.items():
        report.error(f'"{url}": no handshake in {version}: {why}')
    for each in result.measured:
        for why, times in each.tally.errors.most_common() if each.tally else ():
            report.error(f"{each.shown.protocol} {each.kind}: {times} failed: {why}")
    if result.interrupted:
        report.error("interrupted")


def _line(measured: Measured) -> str:
    shown, tally = measured.shown, measured.tally
    name = f"{shown.protocol} {measured.kind:9}"
    if tally is None:
        return f"{name}not offered"
    what = f"  {shown.cipher}, {_key(shown.certificate)}"
    if not tally.latencies:
        return f"{name}{'-':>10}{'-':>9}{'-':>9}{0:>8}{tally.errors.total():>8}{what}"
    p50, p99 = (percentile(tally.latencies, each) * 1e3 for each in (50, 99))
    counts = f"{len(tally.latencies):>8}{tally.errors.total():>8}"
    return f"{name}{tally.per_second:>10.0f}{p50:>9.2f}{p99:>9.2f}{counts}{what}"
