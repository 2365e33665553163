"""`botproxy serve`: the proxy.

Before: `cli.source`, which reads the configuration. After: `server.supervisor`.
"""

from __future__ import annotations

from typing import Any

import click

from botproxy.cli.source import options, reader
from botproxy.cli.verb import Verb
from botproxy.config import apart
from botproxy.observe import logs
from botproxy.server.supervisor import Supervisor


@click.command(
    cls=Verb,
    help="serve a bot over HTTPS",
    examples=(
        (
            "botproxy serve --cert fullchain.pem --key privkey.pem --to http://localhost:8000",
            "the bot on port 8000, with your certificate, on ports 443 and 80",
        ),
        ("botproxy serve --config /etc/botproxy/botproxy.yaml", "everything as the file says"),
    ),
)
@options
def command(**given: Any) -> int:
    read = reader(**given)
    config = apart.read(read)
    logs.setup(config.log.level, process="supervisor")
    return Supervisor(config, read_again=read).run()
