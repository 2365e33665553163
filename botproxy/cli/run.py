"""`botproxy run -- COMMAND`: the bot as a child, and the proxy in front of it.

One container, one command. Deliveries are taken from the first moment and wait until the
bot accepts them. A bot that fails is started again, later each time, and given up after ten
failures in a row. Its exit code is ours: when it is given up, when it ends with 0, and when
it was told to end because we were (143 if it does not handle SIGTERM). 127 and 126, from
the first start, are a command that is not found and one that cannot be executed.

Before: `cli.source`, which reads the configuration. After: `server.supervisor`.
"""

from __future__ import annotations

from typing import Any

import click

from botproxy.cli.source import options, reader
from botproxy.cli.verb import Verb, WrongUsage
from botproxy.config import apart
from botproxy.observe import logs
from botproxy.server.supervisor import Supervisor


@click.command(
    cls=Verb,
    # What follows the command belongs to it, with or without the "--".
    context_settings={"allow_interspersed_args": False},
    help="start a bot, and serve it over HTTPS; ends with the bot's exit code",
    examples=(
        (
            "botproxy run --cert fullchain.pem --key privkey.pem -- python bot.py",
            "the bot listens on port 8000",
        ),
        ("botproxy run --config botproxy.yaml -- node bot.js", "everything else as the file says"),
    ),
)
@options
@click.argument("bot", nargs=-1, metavar="-- COMMAND...", type=click.UNPROCESSED)
def command(bot: tuple[str, ...], **given: Any) -> int:
    if not bot:
        raise WrongUsage("expected the command that starts the bot", "botproxy run ... -- python bot.py")
    read = reader(**given)
    config = apart.read(read)
    logs.setup(config.log.level, process="supervisor")
    return Supervisor(config, read_again=read, bot=bot).run()
