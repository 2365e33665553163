"""`botproxy serve`: the proxy, from a configuration file or from options alone.

Turns the command line into values of the configuration and no more: what a value
may be is decided by the schema, for options as for files, and every problem is
told at once. An option wins over the same key of the file.

Before: `config.load`. After: `server.supervisor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from botproxy.cli.verb import Verb, WrongUsage
from botproxy.config.load import load_file, load_options
from botproxy.observe import logs
from botproxy.server import supervisor

_EXPECTED = 'expected either "--config FILE" or "--cert CHAIN --key KEY"'


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
@click.option("--config", metavar="FILE", help="Configuration file (YAML).")
@click.option("--cert", metavar="CHAIN", help="Certificate with its intermediates (PEM), instead of a file.")
@click.option("--key", metavar="KEY", help="Private key of the certificate (PEM).")
@click.option("--to", metavar="URL", help="The bot: http://host:port or unix:/path.  [http://127.0.0.1:8000]")
@click.option(
    "--listen", multiple=True, metavar="HOST:PORT", help="Where to serve HTTPS; repeatable.  [:443]"
)
@click.option(
    "--plain-listen",
    multiple=True,
    metavar="HOST:PORT|off",
    help="Where to redirect from HTTP; repeatable.  [:80]",
)
@click.option("--workers", metavar="N|auto", help="Processes that serve.  [auto: one per CPU]")
@click.option("--user", metavar="NAME", help="Account of the workers, when started as root.")
@click.option("--state-dir", metavar="DIR", help="Where the admin socket lies.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.  [info]")
def command(config: str | None, cert: str | None, key: str | None, to: str | None, **others: Any) -> int:
    _one_source(config, {"--cert": cert, "--key": key, "--to": to})
    overrides, origins = _values(others)
    if config is not None:
        loaded = load_file(config, overrides, origins)
    else:
        pair = {"certificates": [{"chain": cert, "key": key}]}
        bot = {} if to is None else {"upstreams": {"bot": {"url": to}}}
        loaded = load_options(pair | bot | overrides, _ORIGINS | origins)
    logs.setup(loaded.log.level, process="supervisor")
    return supervisor.run(loaded)


# Private


_ORIGINS = {"certificates[0].chain": "--cert", "certificates[0].key": "--key", "upstreams.bot.url": "--to"}


def _one_source(config: str | None, pair: Mapping[str, str | None]) -> None:
    """Raises WrongUsage unless there is a file, or a certificate and a key."""
    given = [name for name, value in pair.items() if value is not None]
    missing = [name for name in ("--cert", "--key") if pair[name] is None]
    if config is not None and given:
        raise WrongUsage(
            f'{_EXPECTED}, found "--config" and "{given[0]}"', f'write what "{given[0]}" says into the file'
        )
    if config is None and not given:
        raise WrongUsage(f"{_EXPECTED}, found neither", 'to look around without either: "botproxy demo"')
    if config is None and missing:
        raise WrongUsage(f'{_EXPECTED}, found "{given[0]}" without "{missing[0]}"')


def _values(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The options that were given, as the configuration has them, and where each came from."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key in ("user", "state_dir"):
        if options[key] is not None:
            values[key] = options[key]
    if options["workers"] is not None:
        values["workers"] = int(options["workers"]) if options["workers"].isdecimal() else options["workers"]
    if options["listen"]:
        values["listen"] = list(options["listen"])
    if options["plain_listen"]:
        values["plain_listen"] = _unless_off(options["plain_listen"])
    for key in values:
        origins[key] = "--" + key.replace("_", "-")
    if options["log_level"] is not None:
        values["log"] = {"level": options["log_level"]}
        origins["log.level"] = "--log-level"
    return values, origins


def _unless_off(addresses: Sequence[str]) -> list[str]:
    return [] if list(addresses) == ["off"] else list(addresses)
