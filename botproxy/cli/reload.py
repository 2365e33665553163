"""`botproxy reload`: everything that can be read again is read again.

Today these are the certificates: the same as `botproxy cert reload --wait` for all of
them, and as SIGHUP, which waits for nothing.
"""

from __future__ import annotations

import click

from botproxy.cli.ask import options
from botproxy.cli.cert import change
from botproxy.cli.verb import Verb


@click.command(
    cls=Verb,
    help="have the running botproxy read its certificates again, and say what became of it",
    examples=(("botproxy reload", "the same as SIGHUP, with an answer"),),
)
@options
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer, for machines.")
def command(config: str | None, admin: str | None, as_json: bool) -> int:
    return change(config, admin, "/-/reload?wait=1", as_json)
