"""`botproxy demo`: the whole thing on this machine, with nothing prepared.

Makes a development certificate for localhost (`cli.development`), starts an echo
bot (`cli.echo_bot`), serves the one in front of the other with the embedded
configuration below, and prints the line to try. What it makes stays in the state
directory for the next run. It opens no port but its own and the bot's, and touches
no trust store.
"""

from __future__ import annotations

import errno
import shlex
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from botproxy.cli import development, echo_bot, report
from botproxy.cli.verb import Verb, WrongUsage
from botproxy.config import apart
from botproxy.config.state import Placement, make_state_dir
from botproxy.config.values import split_address
from botproxy.observe import logs
from botproxy.server.privileges import UNPRIVILEGED
from botproxy.server.supervisor import Supervisor

if TYPE_CHECKING:
    from botproxy.config.schema import Config

_ADDRESS = "127.0.0.1:8443"
_NEAR = ("127.0.0.1", "localhost", "::1", "", "0.0.0.0", "::")
"""Hosts of `--listen` at which https://localhost finds the demo."""


@click.command(
    cls=Verb,
    help="serve an echo bot at https://localhost:8443, to look around",
    examples=(
        ("botproxy demo", "then paste the curl line it prints into another terminal"),
        ("botproxy demo --listen 127.0.0.1:9443", "the same on another port"),
    ),
)
@click.option("--listen", default=_ADDRESS, metavar="HOST:PORT", help=f"Where to serve HTTPS.  [{_ADDRESS}]")
@click.option("--state-dir", metavar="DIR", help="Where the development CA is kept.")
def command(listen: str, state_dir: str | None) -> int:
    directory = make_state_dir(Placement(state_dir)) / "development"
    try:
        files = development.certificate(directory, datetime.now(UTC))
    except OSError as error:
        report.error(f'"{directory}": {error.strerror}', 'name another place with "--state-dir"')
        return 1
    with echo_bot.running() as bot_port:
        config = configuration(listen, str(files.chain), str(files.key), bot_port)
        if _is_taken(listen):
            report.error(f'"{listen}" is taken by another program', _ELSEWHERE)
            return 1
        logs.setup(config.log.level, process="supervisor")
        return Supervisor(config, announce=lambda urls: _announce(urls[0], files.ca)).run()


def configuration(listen: str, chain: str, key: str, bot_port: int) -> Config:
    """The embedded configuration. Raises ConfigError or WrongUsage when `listen` cannot be meant."""
    config = apart.read(lambda: _load(listen, chain, key, bot_port))
    if listen == "systemd" or listen.startswith("fd:") or split_address(listen)[0] not in _NEAR:
        raise WrongUsage(
            f'option "--listen": expected an address at which localhost is found, found "{listen}"',
            "127.0.0.1:PORT is for this machine, :PORT for others as well",
        )
    return config


# Private


def _load(listen: str, chain: str, key: str, bot_port: int) -> Config:
    from botproxy.config.load import load_options

    return load_options(
        {
            "listen": [listen],
            "plain_listen": [],
            "workers": 1,
            "user": UNPRIVILEGED,
            "certificates": [{"chain": chain, "key": key}],
            "upstreams": {"bot": {"url": f"http://127.0.0.1:{bot_port}"}},
            # What a public certificate would be warned of is meant here; failures are still said.
            "log": {"level": "error"},
            # A botproxy in earnest may run under the same account, and owns the usual socket.
            "admin": "off",
        },
        {"listen": "--listen"},
    )


_ELSEWHERE = "choose another port: botproxy demo --listen 127.0.0.1:9443"


def _is_taken(listen: str) -> bool:
    """Whether somebody listens there already: SO_REUSEPORT would let us listen beside our own kind."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, int(port)), family=family).close()
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def _announce(url: str, ca: Path) -> None:
    port = url.rpartition(":")[2]
    click.echo(_TEXT.format(url=f"https://localhost:{port}/", ca=shlex.quote(str(ca))))


_TEXT = """
botproxy serves {url} in front of an echo bot

  Try it in another terminal:

    curl --cacert {ca} {url}

  For your own bot, on a machine that the world reaches as bot.example.com:

    sudo certbot certonly --standalone -d bot.example.com
    sudo botproxy serve --user nobody \\
      --cert /etc/letsencrypt/live/bot.example.com/fullchain.pem \\
      --key /etc/letsencrypt/live/bot.example.com/privkey.pem \\
      --to http://localhost:8000

    certbot renews on port 80: say "acme_webroot" in a configuration file, or "--plain-listen off".

  Ctrl-C stops the demo. Each request shows up below, as one line of JSON.
"""
