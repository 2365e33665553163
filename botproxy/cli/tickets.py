"""`botproxy tickets`: the keys with which clients resume their TLS sessions.

They are renewed by themselves twice a day; `rotate` does it now. New workers with new keys
take over, the old ones end with their last connection.
"""

from __future__ import annotations

import click

from botproxy.cli import report
from botproxy.cli.ask import NoAnswerError, ask, foreign, options, say_no_answer
from botproxy.cli.verb import Entry, Verb, Verbs

PATIENCE = 70.0
"""Seconds until the new workers serve, or have been given up."""

command = Verbs(
    table={"rotate": Entry("make new session ticket keys now", "botproxy.cli.tickets:rotate")},
    examples=(("botproxy tickets rotate", "sessions from before begin with a full handshake again"),),
    help="the session ticket keys of the running botproxy",
)


@click.command(
    cls=Verb,
    help="make new session ticket keys now; no connection is lost",
    examples=(("botproxy tickets rotate", "sessions from before begin with a full handshake again"),),
)
@options
def rotate(config: str | None, admin: str | None) -> int:
    try:
        answer = ask(config, admin, "/-/rotate", "POST", PATIENCE)
        if not isinstance(answer.get("rotated"), bool):
            raise foreign()
    except NoAnswerError as error:
        return say_no_answer(error)
    if not answer["rotated"]:
        report.error(
            f"the session ticket keys stay the old ones: {answer.get('says')}", "see the log, try again"
        )
        return 1
    click.echo("new session ticket keys are in use")
    return 0
