"""The program replaces itself: a successor inherits the sockets, and takes over when it serves.

The successor is started as this one was, from whatever version is installed now. It is
handed the listening sockets, the admin socket and a link by number, described in one
environment variable. It says `Ready` when it serves; until then its predecessor does, and
if it fails its predecessor goes on. When which of the two does what is
`server.supervisor`'s business.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import botproxy
from botproxy.control import link, packets
from botproxy.server.children import SIGNALS, Child, Children, Closable
from botproxy.server.sockets import Key

VARIABLE = "BOTPROXY_INHERITED"
PATIENCE = 60.0
"""Seconds within which a successor must serve."""


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a predecessor passed on."""

    listening: dict[Key, list[socket.socket]] = field(default_factory=dict)
    admin: tuple[Path, socket.socket] | None = None
    link: socket.socket | None = None
    """To the predecessor, in a successor."""
    stays: bool = False
    """Whether the predecessor stays until its successor ends, and so on."""


def inherit(environment: MutableMapping[str, str]) -> Inheritance:
    """Take up what `environment` describes, and take the description out of it."""
    text = environment.pop(VARIABLE, None)
    if text is None:
        return Inheritance()
    told = json.loads(text)
    listening = {(tls, address): [_taken(fd) for fd in fds] for tls, address, fds in told["listening"]}
    admin = (Path(told["admin"][0]), _taken(told["admin"][1])) if told["admin"] else None
    return Inheritance(listening, admin, _taken(told["link"]), bool(told["stays"]))


def installed_version() -> str:
    """The version of the program that a successor would be, read from the disk."""
    try:
        text = Path(botproxy.__file__).read_text(encoding="utf-8")
    except OSError:
        return botproxy.__version__
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    return found[1] if found else botproxy.__version__


def take_over(link_: socket.socket) -> None:
    """Tell the predecessor that it may go. Raises OSError when it has gone."""
    packets.send(link_, link.Ready())
    link_.close()


def start(
    children: Children,
    foreign: Sequence[Closable],
    inheritance: Inheritance,
    environment: Mapping[str, str],
) -> Child:
    """Start a successor, which has `environment` beside this process's own. Raises OSError."""
    child = Child("successor")

    def body(control: socket.socket) -> int:
        _become(inheritance, control, environment)
        return 1

    children.fork(child, foreign, body)
    return child


# Private


def _become(inheritance: Inheritance, control: socket.socket, environment: Mapping[str, str]) -> None:
    """In a process just forked: be the program that is installed now. Raises OSError; else never returns."""
    told = {
        "listening": [
            [tls, address, [_passed(sock) for sock in socks]]
            for (tls, address), socks in inheritance.listening.items()
        ],
        "admin": None
        if inheritance.admin is None
        else [str(inheritance.admin[0]), _passed(inheritance.admin[1])],
        "link": _passed(control),
        "stays": inheritance.stays,
    }
    env = {**os.environ, **environment, VARIABLE: json.dumps(told)}
    if os.environ.get("LISTEN_PID") == str(os.getppid()):
        env["LISTEN_PID"] = str(os.getpid())  # the manager's sockets have kept their numbers
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], env)


def _taken(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock


def _passed(sock: socket.socket) -> int:
    os.set_inheritable(sock.fileno(), True)
    return sock.fileno()
