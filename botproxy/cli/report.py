"""How a command says that something is wrong.

One line `botproxy: error: ...`, then `botproxy: hint: ...` where there is
something to do, on stderr; the words are the caller's, by the rules at the top
of `cli.main`. Control characters are written as escapes, so that neither a
file nor a certificate can drive the terminal. Never decides an exit code.
"""

from __future__ import annotations

import os
import sys
from typing import IO

import click

from botproxy.errors import ConfigError

_STYLES = {"error": "red", "warning": "yellow", "info": "blue", "hint": "cyan"}


def error(message: str, hint: str | None = None) -> None:
    """What failed and, if there is one, what to do about it."""
    say("error", message)
    if hint is not None:
        say("hint", hint)


def configuration(problems: ConfigError) -> None:
    """Every problem of a configuration, each with its hint."""
    for problem in problems.problems:
        error(str(problem), problem.hint)


def say(kind: str, message: str) -> None:
    """One line on stderr: `kind` is error, warning, info or hint."""
    label = click.style(kind, fg=_STYLES[kind], bold=True) if has_colour(sys.stderr) else kind
    click.echo(f"botproxy: {label}: {printable(message)}", err=True, color=True)


def has_colour(stream: IO[str]) -> bool:
    """Whether `stream` is a terminal whose user did not switch colours off (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """`text` on one line, with control characters, and whatever else cannot be printed, as escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
