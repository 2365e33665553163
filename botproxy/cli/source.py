"""Where the configuration of a botproxy that serves comes from: a file, variables, options.

Turns the command line into values of the configuration and no more: what a value may be
is decided by the schema, for options as for files, and every problem is told at once. An
option wins over a variable, a variable over the file. What is read once can be read
again, for a reload.

Before: `cli.serve`, `cli.run`. After: `config.load`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from botproxy.cli.verb import WrongUsage
from botproxy.config import environment

if TYPE_CHECKING:
    from botproxy.config.schema import Config

_EXPECTED = 'expected either "--config FILE" or "--cert CHAIN --key KEY"'
_OPTIONS = (
    click.option("--config", metavar="FILE", help="Configuration file (YAML)."),
    click.option(
        "--cert", metavar="CHAIN", help="Certificate with its intermediates (PEM), instead of a file."
    ),
    click.option("--key", metavar="KEY", help="Private key of the certificate (PEM)."),
    click.option(
        "--to", metavar="URL", help="The bot: http://host:port or unix:/path.  [http://127.0.0.1:8000]"
    ),
    click.option(
        "--listen", multiple=True, metavar="HOST:PORT", help="Where to serve HTTPS; repeatable.  [:443]"
    ),
    click.option(
        "--plain-listen",
        multiple=True,
        metavar="HOST:PORT|off",
        help="Where to redirect from HTTP; repeatable.  [:80]",
    ),
    click.option("--workers", metavar="N|auto", help="Processes that serve.  [auto: one per CPU]"),
    click.option("--user", metavar="NAME", help="Account of the workers, when started as root."),
    click.option("--state-dir", metavar="DIR", help="Where certificates and the admin socket lie."),
    click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.  [info]"),
)

F = TypeVar("F", bound=Callable[..., Any])


def options(command: F) -> F:
    """The options of everything that serves; `reader` takes their values."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def reader(
    *, config: str | None, cert: str | None, key: str | None, to: str | None, **others: Any
) -> Callable[[], Config]:
    """What reads the configuration that the options, and the environment, speak of.

    Raises WrongUsage when they cannot be meant; what is returned raises ConfigError. It is for a process
    that is there for nothing else (`config.apart`), because it imports what serving does not need.
    """
    file = config or environment.file(os.environ)
    pair = {"--cert": cert, "--key": key, "--to": to}
    _one_source(config, pair, whole=bool(file) or bool(environment.variables(os.environ)))
    values, origins = _values(others)
    if cert is not None:
        values["certificates"] = [{"chain": cert, "key": key}]
    if to is not None:
        values["upstreams"] = {"bot": {"url": to}}

    def read() -> Config:
        from botproxy.config.load import load_file, load_options

        if file is not None and cert is None:
            return load_file(file, values, origins, os.environ)
        return load_options(values, origins, os.environ)

    return read


# Private


_ORIGINS = {"certificates[0].chain": "--cert", "certificates[0].key": "--key", "upstreams.bot.url": "--to"}


def _one_source(config: str | None, pair: Mapping[str, str | None], *, whole: bool) -> None:
    """Raises WrongUsage unless there is a file, or variables, or a certificate and a key."""
    given = [name for name, value in pair.items() if value is not None]
    missing = [name for name in ("--cert", "--key") if pair[name] is None]
    if config is not None and given:
        raise WrongUsage(
            f'{_EXPECTED}, found "--config" and "{given[0]}"', f'write what "{given[0]}" says into the file'
        )
    if whole and not given:
        return
    if config is None and not given:
        raise WrongUsage(f"{_EXPECTED}, found neither", 'to look around without either: "botproxy demo"')
    if config is None and missing and not (whole and missing == ["--cert", "--key"]):
        raise WrongUsage(f'{_EXPECTED}, found "{given[0]}" without "{missing[0]}"')


def _values(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The options that were given, as the configuration has them, and where each came from."""
    values: dict[str, Any] = {}
    for key in ("user", "state_dir"):
        if options[key] is not None:
            values[key] = options[key]
    if options["workers"] is not None:
        values["workers"] = int(options["workers"]) if options["workers"].isdecimal() else options["workers"]
    if options["listen"]:
        values["listen"] = list(options["listen"])
    if options["plain_listen"]:
        values["plain_listen"] = _unless_off(options["plain_listen"])
    origins = {key: "--" + key.replace("_", "-") for key in values}
    if options["log_level"] is not None:
        values["log"] = {"level": options["log_level"]}
        origins["log.level"] = "--log-level"
    return values, _ORIGINS | origins


def _unless_off(addresses: Sequence[str]) -> list[str]:
    return [] if list(addresses) == ["off"] else list(addresses)
