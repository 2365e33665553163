"""The command line: which verbs there are, and how each run ends.

A message is lower case, without a full stop, names the thing in "quotes" and
says what was expected; what to do about it stands on a `hint:` line of its own.
Exit codes: 0 done, 1 tried and failed, 2 usage or configuration wrong.

A verb is one module with a `command`; it returns its exit code and never calls
`exit`. Here is also the only place where click's own words are replaced by ours.
"""

from __future__ import annotations

import os
import sys

import click

from botproxy import __version__
from botproxy.cli import report
from botproxy.cli.verb import Entry, Verbs, WrongUsage, did_you_mean
from botproxy.errors import ConfigError, NotRead

VERBS = {
    "demo": Entry("serve an echo bot at https://localhost:8443, to look around", "botproxy.cli.demo"),
    "serve": Entry("serve a bot over HTTPS", "botproxy.cli.serve"),
    "run": Entry("start a bot, and serve it over HTTPS", "botproxy.cli.run"),
    "check": Entry("check a configuration and its certificates; changes nothing", "botproxy.cli.check"),
    "health": Entry("ask the running botproxy whether it serves", "botproxy.cli.health"),
    "cert": Entry("show, reload and roll back the certificates of the running botproxy", "botproxy.cli.cert"),
    "reload": Entry("have the running botproxy read its certificates again", "botproxy.cli.reload"),
    "bench": Entry("count the TLS handshakes per second of a server on this machine", "botproxy.cli.bench"),
    "tickets": Entry("renew the session ticket keys of the running botproxy", "botproxy.cli.tickets"),
}

EXAMPLES = (
    ("botproxy demo", "look around: https://localhost:8443 with an echo bot behind it"),
    (
        "botproxy serve --cert fullchain.pem --key privkey.pem --to http://localhost:8000",
        "serve the bot on port 8000 with your certificate",
    ),
    ("botproxy check botproxy.yaml", "see what is wrong with a configuration before it is used"),
)


@click.group(
    cls=Verbs,
    table=VERBS,
    examples=EXAMPLES,
    help="the TLS front door of a bot",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    options_metavar="",
    subcommand_metavar="COMMAND [OPTIONS]",
    no_args_is_help=False,
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="botproxy", message="%(prog)s %(version)s")
@click.pass_context
def botproxy(context: click.Context) -> int:
    if context.invoked_subcommand is not None:
        return 0
    click.echo(context.get_help())
    return 2


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (by default the process's own) and return its exit code."""
    _open_standard_descriptors()
    try:
        code = botproxy.main(arguments, prog_name="botproxy", standalone_mode=False)
    except NotRead as failure:
        report.error(f"the configuration cannot be read: {failure}", "try again; nothing is wrong with it")
        return 1
    except ConfigError as problems:
        report.configuration(problems)
        return 2
    except click.exceptions.NoArgsIsHelpError as bare:
        click.echo(bare.format_message())
        return 2
    except click.UsageError as wrong:
        report.error(*_in_our_words(wrong))
        return 2
    except click.Abort:
        report.error("interrupted")
        return 1
    return int(code or 0)


# Private


def _in_our_words(wrong: click.UsageError) -> tuple[str, str]:
    """The message and the hint for a usage error, most of which are click's."""
    path = wrong.ctx.command_path if wrong.ctx else "botproxy"
    see_help = f'"{path} --help" shows what there is'
    match wrong:
        case WrongUsage():
            return wrong.message, wrong.hint or see_help
        case click.NoSuchOption(option_name=name):
            return f'unknown option "{name}" of "{path}"', did_you_mean(name, _options(wrong)) or see_help
        case click.MissingParameter(param=click.Argument() as argument):
            return f'expected "{argument.human_readable_name}"', see_help
        case _:
            return _tidy(wrong.format_message()), see_help


def _options(wrong: click.UsageError) -> list[str]:
    if wrong.ctx is None:
        return []
    return [name for parameter in wrong.ctx.command.get_params(wrong.ctx) for name in parameter.opts]


def _tidy(message: str) -> str:
    return (message[:1].lower() + message[1:].removesuffix(".")).replace("'", '"')


def _open_standard_descriptors() -> None:
    """Started with one of them closed, a socket would take its place, and the logs would go to a client."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 it lives as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
