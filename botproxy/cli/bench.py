"""`botproxy bench`: what a server on this machine achieves, measured from this machine.

`handshake` counts full and resumed TLS handshakes in each version that is offered. Client and server share
the processors, so the client says how much of them it took itself. Certificates are judged and reported,
never required: those of development are self-signed. Exit codes: 0 every handshake succeeded, 1 one did not
or nobody answered, 2 usage, which includes a server that may not be measured (`cli.target`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import click
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from botproxy.cli import report
from botproxy.cli.handshakes import VERSIONS, First, Kind, Limits, Tally, first, in_words, measure, percentile
from botproxy.cli.target import Target, UnknownHostError, target
from botproxy.cli.verb import Entry, Verb, Verbs

MOST_SECONDS, MOST_COUNT, MOST_CLIENTS = 30.0, 5000, 16
"""For each measure. All four together use fewer ports than Linux has for connections to one address."""
SLOW_RATE, SLOW_SECONDS = 10.0, 5.0
"""Handshakes a second, one at a time, and seconds for each measure, of a server elsewhere."""

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
        server = target(url, own_host)
    except UnknownHostError as error:
        report.error(f'"{url}": {error}')
        return 1
    limits = permitted(Limits(seconds, count, clients), local=server.local)
    shown, refused = _first_of_each(server)
    if not shown:
        for version, why in refused.items():
            report.error(f'"{url}": no handshake in {version}: {why}')
        return 1
    measured = [
        _measure(server, each, kind, version, limits)
        for version, each in shown.items()
        for kind in get_args(Kind)
    ]
    if as_json:
        click.echo(json.dumps(_as_json(server, limits, shown, refused, measured), indent=2))
    else:
        _print_text(server, limits, shown, refused, measured)
    for each in measured:
        for why, times in each.tally.errors.most_common() if each.tally else ():
            report.error(f"{each.shown.protocol} {each.kind}: {times} failed: {why}")
    return 1 if any(each.failed for each in measured) else 0


def permitted(asked: Limits, *, local: bool) -> Limits:
    """What becomes of `asked`: a server elsewhere gets no more than a browser would ask of it."""
    return asked if local else Limits(min(asked.seconds, SLOW_SECONDS), asked.count, 1, SLOW_RATE)


# Private


def _first_of_each(server: Target) -> tuple[dict[str, First], dict[str, str]]:
    """What each version shows, and why the others cannot be had."""
    shown, refused = {}, {}
    for version in VERSIONS:
        try:
            shown[version] = first(server, version)
        except OSError as error:
            refused[version] = in_words(error)
    return shown, refused


def _measure(server: Target, shown: First, kind: Kind, version: str, limits: Limits) -> Measured:
    if kind == "resumed" and shown.session is None:
        return Measured(shown, kind, None)
    with _progress(f"{version} {kind:7}") as progress:
        return Measured(shown, kind, measure(server, version, kind, limits, progress))


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
        bar.update(steps - bar.pos)


def _key(der: bytes) -> str:
    """As people call it: ECDSA P-256, RSA 2048."""
    key = x509.load_der_x509_certificate(der).public_key()
    match key:
        case ec.EllipticCurvePublicKey():
            return f"ECDSA {_CURVES.get(key.curve.name, key.curve.name)}"
        case rsa.RSAPublicKey():
            return f"RSA {key.key_size}"
        case _:
            return type(key).__name__.removesuffix("PublicKey").lstrip("_")


_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


def _as_json(
    server: Target,
    limits: Limits,
    shown: dict[str, First],
    refused: dict[str, str],
    measured: list[Measured],
) -> dict[str, Any]:
    any_shown = next(iter(shown.values()))
    return {
        "ok": not any(each.failed for each in measured),
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
        "trusted": any_shown.distrust is None,
        "distrust": any_shown.distrust,
        "not_offered": refused,
        "measures": [_measure_as_json(each) for each in measured],
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


def _print_text(
    server: Target,
    limits: Limits,
    shown: dict[str, First],
    refused: dict[str, str],
    measured: list[Measured],
) -> None:
    any_shown = next(iter(shown.values()))
    trust = "is trusted" if any_shown.distrust is None else f"is not trusted here: {any_shown.distrust}"
    lines = [f"{server.host}:{server.port} at {server.address[0]}; its certificate {trust}", ""]
    lines += [f"{'':17}{'per second':>10}{'p50 ms':>9}{'p99 ms':>9}{'count':>8}{'errors':>8}"]
    lines += [_line(each) for each in measured]
    lines += [f"{version} is not offered: {why}" for version, why in refused.items()]
    lines.append("")
    if limits.rate is not None:
        lines.append(f"not on this machine: at most {limits.rate:g} a second, so latencies count, not rates")
    elif tallies := [each.tally for each in measured if each.tally and each.tally.seconds]:
        took = sum(tally.cpu for tally in tallies) / sum(tally.seconds for tally in tallies)
        share = f"{took:.1f} of {os.cpu_count()} processors"
        lines.append(f"this client took {share}, and the server could not use them")
    for text in lines:
        click.echo(report.printable(text))


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
