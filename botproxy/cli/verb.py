"""What a command looks like: examples first, then its options.

`Verb` is a click command whose help begins with one sentence and examples that
can be pasted; `Verbs` is the group that imports a command's module only when
that command is run, so that `botproxy --help` and `botproxy health` start fast.
Neither knows any particular command; the table of them is in `cli.main`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click

Examples = tuple[tuple[str, str], ...]
"""(command line, what it does) in the order a newcomer needs them."""


class Entry(NamedTuple):
    """A row of the table of verbs."""

    says: str
    """One line of help."""
    module: str
    """Where its `command`, a `Verb` or `Verbs`, is defined; `module:name` for another name."""


class WrongUsage(click.UsageError):
    """A command line that cannot be meant; says what to write instead."""

    def __init__(self, message: str, hint: str | None = None, ctx: click.Context | None = None) -> None:
        super().__init__(message, ctx)
        self.hint = hint


class Verb(click.Command):
    """One command; its callback returns the exit code."""

    def __init__(self, *args: Any, examples: Examples = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_help(self, self.examples, ctx, formatter)


class Verbs(click.Group):
    """The group of all verbs."""

    def __init__(
        self, *args: Any, table: Mapping[str, Entry], examples: Examples = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.table = table
        self.examples = examples

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name].module.partition(":")
        command = getattr(importlib.import_module(module), attribute or "command")
        assert isinstance(command, Verb | Verbs)
        return command

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_help(self, self.examples, ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.table and not args[0].startswith("-"):
            raise WrongUsage(f'unknown command "{args[0]}"', did_you_mean(args[0], list(self.table)), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.says) for name, entry in self.table.items()])


def did_you_mean(word: str, known: Sequence[str]) -> str | None:
    """A hint that names the nearest of `known`, if one is near."""
    close = difflib.get_close_matches(word, known, n=1)
    return f'did you mean "{close[0]}"?' if close else None


# Private


def _write_help(
    command: click.Command, examples: Examples, ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    formatter.write_text(f"{ctx.command_path}: {command.help}")
    for line, says in examples:
        formatter.write("\n")
        with formatter.indentation():
            formatter.write(f"{'':>{formatter.current_indent}}# {says}\n")
            # Not wrapped: the line is there to be copied.
            formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
    formatter.write("\n")
    command.format_usage(ctx, formatter)
    command.format_options(ctx, formatter)
