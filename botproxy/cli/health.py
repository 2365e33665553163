"""`botproxy health`: asks the running botproxy whether it serves.

One question to the keeper, answered within 3 s; the answer is the exit code. Made to be
run every few seconds in a container. Degraded is healthy: clients are served, and
somebody should look.
"""

from __future__ import annotations

import json
from typing import Any

import click

from botproxy.cli import report
from botproxy.cli.ask import NoAnswerError, ask, foreign, options, say_no_answer
from botproxy.cli.verb import Verb


@click.command(
    cls=Verb,
    help="ask the running botproxy whether it serves; exit code 0: yes, 1: no",
    examples=(
        ("botproxy health", "ask the botproxy of this account"),
        ("botproxy health --config /etc/botproxy.yaml", "ask the one that was started with this file"),
    ),
)
@options
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer, for machines.")
def command(config: str | None, admin: str | None, as_json: bool) -> int:
    try:
        answer = _ready(ask(config, admin, "/-/ready"))
    except NoAnswerError as error:
        if as_json:
            click.echo(json.dumps({"ready": False, "error": str(error)}))
        return say_no_answer(error)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo(report.printable(_in_words(answer)))
    return 0 if answer["ready"] else 1


# Private


def _ready(answer: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(answer.get("ready"), bool):
        raise foreign()
    return answer


def _in_words(answer: dict[str, Any]) -> str:
    if answer["ready"]:
        degraded = answer.get("degraded")
        return f"ready, degraded: {'; '.join(map(str, degraded))}" if degraded else "ready"
    workers = answer.get("workers")
    if not isinstance(workers, list):
        return "not ready"
    serving = sum(isinstance(worker, dict) and worker.get("set") is not None for worker in workers)
    return f"not ready: {serving} of {len(workers)} workers have their certificates"
