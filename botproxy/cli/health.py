"""`botproxy health`: asks the running botproxy whether it serves.

One question on the admin socket, answered by the keeper, within 3 s; the answer
is the exit code. Made to be run every few seconds in a container, so it reads
the configuration, and imports what that takes, only when one is named.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import click

from botproxy.cli import report
from botproxy.cli.verb import Verb, WrongUsage
from botproxy.config.state import Placement, admin_socket

DEADLINE = 3.0
"""Seconds from the question to the end of the answer."""
_LARGEST = 1024 * 1024
"""Bytes of an answer; more is not from botproxy."""


class NoAnswerError(Exception):
    """Nothing that could be asked; says what was tried."""


@click.command(
    cls=Verb,
    help="ask the running botproxy whether it serves; exit code 0: yes, 1: no",
    examples=(
        ("botproxy health", "ask the botproxy of this account"),
        ("botproxy health --config /etc/botproxy.yaml", "ask the one that was started with this file"),
    ),
)
@click.option("--config", metavar="FILE", help="Configuration that names the admin socket.")
@click.option("--admin", metavar="unix:PATH", help="The admin socket itself.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer, for machines.")
def command(config: str | None, admin: str | None, as_json: bool) -> int:
    try:
        answer = ask(_socket(config, admin), DEADLINE)
    except NoAnswerError as error:
        if as_json:
            click.echo(json.dumps({"ready": False, "error": str(error)}))
        report.error(str(error), 'is it running? name its file with "--config", or its socket with "--admin"')
        return 1
    click.echo(json.dumps(answer, indent=2) if as_json else _in_words(answer))
    return 0 if answer["ready"] else 1


def ask(path: Path, deadline: float) -> dict[str, Any]:
    """The keeper's answer to `GET /-/ready`; raises NoAnswerError after `deadline` seconds at the latest."""
    try:
        return _answer(_exchange(path, time.monotonic() + deadline))
    except TimeoutError:
        raise NoAnswerError(f'"{path}": no answer within {deadline:g} s') from None
    except OSError as error:
        raise NoAnswerError(f'"{path}": {(error.strerror or str(error)).lower()}') from None
    except (ValueError, KeyError):
        raise NoAnswerError(f'"{path}": expected the answer of botproxy, found something else') from None


# Private


def _socket(config: str | None, admin: str | None) -> Path:
    if config is not None and admin is not None:
        raise WrongUsage('expected either "--config" or "--admin", found both')
    if admin is not None:
        if not admin.startswith("unix:/"):
            raise WrongUsage(f'option "--admin": expected "unix:/path/to.sock", found "{admin}"')
        return Path(admin.removeprefix("unix:"))
    if config is None:
        path = admin_socket(Placement())
    else:
        from botproxy.config.load import load_file  # costs more than everything else here

        path = admin_socket(load_file(config))
    if path is None:
        raise NoAnswerError(f'"{config}": admin: expected a socket to ask, found "off"')
    return path


def _in_words(answer: dict[str, Any]) -> str:
    if answer["ready"]:
        return "ready"
    workers = answer.get("workers")
    if not isinstance(workers, list):
        return "not ready"
    serving = sum(isinstance(worker, dict) and worker.get("generation") is not None for worker in workers)
    return f"not ready: {serving} of {len(workers)} workers have their certificates"


def _exchange(path: Path, ends: float) -> bytes:
    """Everything the socket answers until it closes. HTTP/1.0, so that the body is not chunked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(max(ends - time.monotonic(), 0.001))
        connection.connect(str(path))
        connection.sendall(b"GET /-/ready HTTP/1.0\r\nHost: localhost\r\n\r\n")
        answer = bytearray()
        while len(answer) <= _LARGEST:
            connection.settimeout(max(ends - time.monotonic(), 0.001))
            if not (data := connection.recv(65536)):
                return bytes(answer)
            answer += data
    raise ValueError("the answer does not end")


def _answer(data: bytes) -> dict[str, Any]:
    head, separator, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.") or not separator:
        raise ValueError("no HTTP response")
    answer = json.loads(body)
    if not isinstance(answer, dict) or not isinstance(answer["ready"], bool):
        raise ValueError("no answer of botproxy")
    return answer
