"""`botproxy reload`: the configuration and the certificates are read again.

As SIGHUP, but it waits, and says what became of it: a new configuration is in use, or
refused for these reasons while the old one stays; with the old one the certificate files
are looked at, as by `botproxy cert reload --wait`. Exit codes are those of `cli.cert`, and
2 where the configuration is wrong.
"""

from __future__ import annotations

import json

import click

from botproxy.cli import report
from botproxy.cli.ask import NoAnswerError, ask, foreign, options, say_no_answer
from botproxy.cli.cert import PATIENCE, say_changes
from botproxy.cli.verb import Verb


@click.command(
    cls=Verb,
    help="have the running botproxy read its configuration and certificates again",
    examples=(("botproxy reload", "the same as SIGHUP, with an answer"),),
)
@options
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer, for machines.")
def command(config: str | None, admin: str | None, as_json: bool) -> int:
    try:
        answer = ask(config, admin, "/-/reconfigure", "POST", PATIENCE)
        if not isinstance(answer.get("changed"), bool) or not isinstance(answer.get("problems"), list):
            raise foreign()
    except NoAnswerError as error:
        return say_no_answer(error)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    if answer["problems"]:
        for problem in [] if as_json else answer["problems"]:
            report.say("error", str(problem))
        if not as_json:
            report.say("hint", "the old configuration stays; botproxy check FILE says what to write instead")
        return 2
    if answer["changed"]:
        if not as_json:
            click.echo("the new configuration is in use")
        return 0
    return say_changes(answer, as_json=as_json)
