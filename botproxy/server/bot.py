"""The bot as a child of ours: `botproxy run -- COMMAND`.

Starts the command with the signals, limits and standard streams that botproxy itself was
given, in a session of its own, so that Ctrl-C stops it through us and not beside us.
That we may bind port 443 is no reason for a bot to be root: it becomes the account of the
workers. It is started again when it fails; when all of it ends is `server.supervisor`'s
decision.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import pwd
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf

from botproxy.server.backoff import Backoff
from botproxy.server.children import SIGNALS, Child, Children, Closable
from botproxy.server.privileges import Account

logger = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PDEATHSIG = 1
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
MOST_FAILURES = 10
"""In a row; after the last it is not started again."""
GRACE = 10.0
"""Seconds that a bot gets to end, once the last delivery was answered."""
NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit codes of a command that cannot be started, as shells have them."""
_LIMITS = (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)
"""Those that we change for ourselves."""
_OURS = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
"""Variables about sockets that the bot is not given."""


class Bot:
    """One bot: how it is started, whether it runs, and when it is started again."""

    def __init__(
        self, command: Sequence[str], children: Children, foreign: Callable[[], list[Closable]]
    ) -> None:
        """`foreign`: the sockets that the bot must not inherit."""
        self._command = tuple(command)
        self._children = children
        self._foreign = foreign
        self.account: Account | None = None
        """Whom it becomes; None: nobody else."""
        self._limits = {kind: resource.getrlimit(kind) for kind in _LIMITS}
        self._us = os.getpid()
        self._backoff = Backoff()
        self._first = True
        self.running: Child | None = None
        self.start_at = inf
        """Monotonic seconds."""

    def start(self) -> None:
        """Start it, or say why that cannot be and plan the next attempt."""
        self.start_at = inf
        child = Child("bot")
        try:
            self._children.fork(child, self._foreign(), self._become)
        except OSError as error:
            delay = self._backoff.plan(0, time.monotonic(), 0.0)
            self.start_at = time.monotonic() + delay
            data = {"why": error.strerror, "in_seconds": delay}
            logger.error("the bot cannot be started", extra={"data": data})
            return
        child.ready = True
        self.running = child
        logger.info("the bot is started", extra={"data": {"pid": child.pid, "command": self._command[0]}})

    def lost(self, code: int, *, again: bool = True) -> bool:
        """It has ended: plan its next start, unless it is not wanted `again`.

        False when there is none: it is done, was told to end, cannot be started or fails always.
        """
        assert self.running is not None
        ended, now = self.running, time.monotonic()
        first, self._first, self.running = self._first, False, None
        delay = self._backoff.plan(0, now, now - ended.started)
        # What it has started and left would hold the port that the next one needs.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(ended.pid, signal.SIGTERM)
        data: dict[str, object] = {"exit": exit_code(code)}
        if code == 0 or not again or ended.kill_at < inf or ended.doomed:
            logger.info("the bot has ended", extra={"data": data})
            return False
        if first and code in (NOT_FOUND, NOT_EXECUTABLE):
            logger.error("the bot cannot be started", extra={"data": data | {"command": self._command[0]}})
            return False
        if self._backoff.failures(0) >= MOST_FAILURES:
            logger.error("the bot fails every time and is given up", extra={"data": data})
            return False
        self.start_at = now + delay
        phrase = "the bot ended and is started again, deliveries wait"
        logger.error(phrase, extra={"data": data | {"in_seconds": delay}})
        return True

    def signal(self, number: signal.Signals) -> None:
        """Pass on what we were told; a bot that is not running misses it."""
        if self.running is not None:
            self._children.signal([self.running], number)

    def stop(self) -> None:
        """Tell it to end, once; after a grace it is killed."""
        self.start_at = inf
        if self.running is not None and self.running.kill_at == inf:
            self._children.signal([self.running], signal.SIGTERM)
            self.running.kill_at = time.monotonic() + GRACE

    def _become(self, _: socket.socket) -> int:
        # Its own group would do against Ctrl-C, but would stop a bot that reads what is typed.
        os.setsid()
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # also what somebody else has left open for us
        for kind, limits in self._limits.items():
            # A hard limit that was lowered cannot be raised again without CAP_SYS_RESOURCE.
            hard = resource.getrlimit(kind)[1]
            with contextlib.suppress(ValueError):
                resource.setrlimit(kind, (_least(limits[0], hard), hard))
                resource.setrlimit(kind, limits)
        environment = {name: text for name, text in os.environ.items() if name not in _OURS}
        if self.account is not None:
            environment |= _enter(self.account)
        libc = ctypes.CDLL(None, use_errno=True)
        # Those for binding ports and for reading certificates would go on to what is executed.
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        # Only now: the kernel forgets it when the account changes.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != self._us:
            return 0  # it has ended already
        for number in (*SIGNALS, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        try:
            os.execvpe(self._command[0], self._command, environment)
        except OSError as error:
            status, says = _reason(self._command[0], environment, error)
            os.write(2, f'botproxy: error: "{self._command[0]}": {says}\n'.encode())  # in one piece
            return status


def _enter(account: Account) -> dict[str, str]:
    """Become `account`, with its groups; what is to be set in the environment."""
    os.initgroups(account.name, account.gid)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    return {"HOME": pwd.getpwnam(account.name).pw_dir, "USER": account.name, "LOGNAME": account.name}


def _reason(program: str, environment: Mapping[str, str], error: OSError) -> tuple[int, str]:
    """Exit code and words for a program that could not be executed."""
    found = shutil.which(program, os.F_OK, environment.get("PATH"))
    if found is None and "/" not in program:
        # What the kernel says may be about a directory of PATH that this account may not enter.
        return NOT_FOUND, "expected a command, found none of this name in PATH"
    if isinstance(error, FileNotFoundError):
        return (NOT_EXECUTABLE, "its interpreter does not exist") if found else (NOT_FOUND, "no such file")
    return NOT_EXECUTABLE, (error.strerror or "it cannot be executed").lower()


def _least(soft: int, hard: int) -> int:
    if hard == resource.RLIM_INFINITY:
        return soft
    return hard if soft == resource.RLIM_INFINITY else min(soft, hard)


def adopt_orphans() -> None:
    """What a bot leaves behind becomes a child of this process, which reaps it."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def exit_code(code: int) -> int:
    """The exit code of a process as a shell has it: 128 and the signal that ended it."""
    return code if code >= 0 else 128 - code
