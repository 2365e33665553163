"""How a command asks the running botproxy: one request on the admin socket, one JSON answer.

Finds the socket from `--admin`, from the configuration named by `--config` or
$BOTPROXY_CONFIG, from the variables of its two keys, or where it lies by default. Reads the
configuration, and imports what that takes, only when one is named: `botproxy health` runs
every few seconds. What an answer means is for the command.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from botproxy.cli import report
from botproxy.cli.verb import WrongUsage
from botproxy.config.state import Placement, admin_socket
from botproxy.errors import ConfigError

if TYPE_CHECKING:
    from botproxy.config.schema import Config

DEADLINE = 3.0
"""Seconds from a question to the end of its answer, unless the command says otherwise."""
_LARGEST = 4 * 1024 * 1024
"""Bytes of an answer; more is not from botproxy."""

F = TypeVar("F", bound=Callable[..., Any])


class NoAnswerError(Exception):
    """Nothing that could be asked; says what was tried."""


def options(command: F) -> F:
    """The options that say whom to ask."""
    for option in (
        click.option("--admin", metavar="unix:PATH", help="The admin socket itself."),
        click.option("--config", metavar="FILE", help="Configuration that names the admin socket."),
    ):
        command = option(command)
    return command


def ask(
    config: str | None, admin: str | None, target: str, method: str = "GET", deadline: float = DEADLINE
) -> dict[str, Any]:
    """The answer to `method` `target`.

    Raises NoAnswerError after `deadline` seconds at the latest, WrongUsage when the two options say
    different things or the request cannot be meant.
    """
    path = _socket(config, admin)
    ends = time.monotonic() + deadline
    try:
        status, answer = _answer(_exchange(path, method, target, ends))
        while answer.get("again") is True:  # whoever took the question is being replaced
            status, answer = _answer(_exchange(path, method, target, ends))
    except TimeoutError:
        raise NoAnswerError(f'"{path}": no answer within {deadline:g} s') from None
    except OSError as error:
        raise NoAnswerError(f'"{path}": {(error.strerror or str(error)).lower()}') from None
    except ValueError:
        raise NoAnswerError(f'"{path}": expected the answer of botproxy, found something else') from None
    if 400 <= status < 500 and "error" in answer:
        raise WrongUsage(str(answer["error"]), answer.get("hint"))
    return answer


def foreign() -> NoAnswerError:
    """For an answer that botproxy would not give."""
    return NoAnswerError("expected the answer of botproxy, found something else")


def say_no_answer(error: NoAnswerError) -> int:
    """Say why nobody answered; the exit code."""
    report.error(str(error), 'is it running? name its file with "--config", or its socket with "--admin"')
    return 1


# Private


def _socket(config: str | None, admin: str | None) -> Path:
    if config is not None and admin is not None:
        raise WrongUsage('expected either "--config" or "--admin", found both')
    if admin is not None:
        if not admin.startswith("unix:/"):
            raise WrongUsage(f'option "--admin": expected "unix:/path/to.sock", found "{admin}"')
        return Path(admin.removeprefix("unix:"))
    named = config or os.environ.get("BOTPROXY_CONFIG") or None
    path = admin_socket(_placement(named, certain=config is not None))
    if path is None:
        raise NoAnswerError(f'"{named or "BOTPROXY_ADMIN"}": admin: expected a socket to ask, found "off"')
    return path


def _placement(config: str | None, *, certain: bool) -> Placement | Config:
    """What says where the socket lies.

    A mistake in the rest of the file is no reason not to ask: the running one serves with what was there
    before. Nor is a file that cannot be read at all, unless it was named for this question.
    """
    variables = Placement(os.environ.get("BOTPROXY_STATE_DIR"), os.environ.get("BOTPROXY_ADMIN"))
    if config is None:
        return variables
    from botproxy.config.load import draft  # costs more than everything else here

    try:
        return draft(config, os.environ).config
    except ConfigError:
        if certain:
            raise
        return variables


def _exchange(path: Path, method: str, target: str, ends: float) -> bytes:
    """Everything the socket answers until it closes. HTTP/1.0, so that the body is not chunked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(max(ends - time.monotonic(), 0.001))
        connection.connect(str(path))
        connection.sendall(f"{method} {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode("ascii"))
        answer = bytearray()
        while len(answer) <= _LARGEST:
            connection.settimeout(max(ends - time.monotonic(), 0.001))
            if not (data := connection.recv(65536)):
                return bytes(answer)
            answer += data
    raise ValueError("the answer does not end")


def _answer(data: bytes) -> tuple[int, dict[str, Any]]:
    head, separator, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.") or not separator:
        raise ValueError("no HTTP response")
    answer = json.loads(body)
    if not isinstance(answer, dict):
        raise ValueError("no answer of botproxy")
    return int(head.split(b" ", 2)[1]), answer
