"""The supervisor's children: how one comes to be, is talked to, and is buried.

A child is forked from the only thread there is, closes everything that is not its own,
and is connected by a link whose end tells either side that the other is gone. A worker
has a channel to the keeper beside it, of which the supervisor keeps both ends: either
side can be replaced. Who is started when, and why, is `server.supervisor`'s business.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Protocol

from botproxy.control import packets

logger = logging.getLogger(__name__)

CRASHED = 70
"""Exit status of a child that ended by an error of ours (EX_SOFTWARE)."""
SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGCHLD,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
"""Those that the supervisor answers."""
IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Those that mean nothing to its children."""


class Closable(Protocol):
    """A socket, a file."""

    def close(self) -> None: ...


@dataclass(slots=True)
class Channel:
    """Between the keeper and one worker."""

    keeper: socket.socket
    worker: socket.socket

    @classmethod
    def make(cls) -> Channel:
        return cls(*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))

    def close(self) -> None:
        self.keeper.close()
        self.worker.close()


@dataclass(slots=True, eq=False)
class Child:
    """A process of ours."""

    name: str
    """For the log: `keeper`, `worker 0`, `successor`, `reader`, `bot`."""
    slot: int | None = None
    """Of a worker."""
    seat: int | None = None
    """Of keeper and workers, among the vitals; of a worker also in the census."""
    channel: Channel | None = None
    """Of a worker, until it retires."""
    pid: int = 0
    link: socket.socket | None = None
    started: float = 0.0
    ready: bool = False
    retired: int | None = None
    """Which change of teams it gave way to; None: it has not."""
    kill_at: float = inf
    """Monotonic seconds at which it is killed if it is still there."""
    doomed: bool = False
    """Whether it was killed, and is only to be reaped."""
    problems: tuple[str, ...] = ()
    """Why it could not do its work."""

    @property
    def is_worker(self) -> bool:
        return self.slot is not None


class Children:
    """Everybody who is alive."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.by_pid: dict[int, Child] = {}
        self._selector = selector

    def __iter__(self) -> Iterator[Child]:
        return iter(tuple(self.by_pid.values()))

    def workers(self) -> list[Child]:
        return [child for child in self if child.is_worker]

    def __len__(self) -> int:
        return len(self.by_pid)

    def fork(self, child: Child, foreign: Iterable[Closable], body: Callable[[socket.socket], int]) -> None:
        """Start `body`, given its end of the link, as `child`. `foreign`: what it must not hold.

        Raises OSError when the machine has no room for another process.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Blocked, so that no signal reaches the child before it has stopped answering for its parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            raise
        else:
            if pid == 0:
                os._exit(self._live(child, (ours, *foreign), theirs, body))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            theirs.close()
        ours.setblocking(False)
        child.pid, child.link, child.started = pid, ours, time.monotonic()
        self.by_pid[pid] = child
        self._selector.register(ours, selectors.EVENT_READ, child)

    def tell(self, child: Child, message: object) -> None:
        """Say something to `child`; one that does not listen is ended."""
        if child.link is None:
            return
        try:
            packets.send(child.link, message)
        except packets.PacketError:
            logger.exception("a message to a process is too large", extra={"data": {"process": child.name}})
        except BlockingIOError:
            logger.error("a process does not listen and is ended", extra={"data": {"process": child.name}})
            self.signal([child], signal.SIGKILL)
        except OSError:
            pass  # it has ended, and is about to be reaped

    def deafen(self, child: Child) -> None:
        """Its link has ended."""
        if child.link is not None and child.link in self._selector.get_map():
            self._selector.unregister(child.link)

    def signal(self, children: Iterable[Child], number: signal.Signals) -> None:
        for child in children:
            if child.pid not in self.by_pid:
                continue
            try:
                os.kill(child.pid, number)
            except PermissionError:
                data = {"process": child.name, "hint": "give CAP_KILL as well, or start as another account"}
                logger.error("a process of another account may not be told to end", extra={"data": data})
                self._hang_up(child)  # it ends in order when its link does

    def _hang_up(self, child: Child) -> None:
        if child.link is not None:
            self.deafen(child)
            child.link.close()
            child.link = None

    def reap(self, hear_out: Callable[[Child], None] = lambda _: None) -> list[tuple[Child, int]]:
        """Those who have ended since the last time, with their exit codes.

        `hear_out` reads what they have said to the last, while the link is still there.
        """
        ended: list[tuple[Child, int]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            child = self.by_pid.pop(pid, None)
            if child is None:
                continue  # an orphan that was given to us
            hear_out(child)
            self.deafen(child)
            if child.link is not None:
                child.link.close()
            if child.channel is not None:
                child.channel.close()
            ended.append((child, os.waitstatus_to_exitcode(status)))

    def _live(
        self,
        child: Child,
        foreign: Iterable[Closable],
        link: socket.socket,
        body: Callable[[socket.socket], int],
    ) -> int:
        """The child's whole life, from the fork to its exit code."""
        try:
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            # Terminals and service managers send them to all of us; they are the supervisor's affair.
            for ignored in IGNORED:
                signal.signal(ignored, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            # One that hangs is ended by SIGABRT, and shall say where it hung.
            faulthandler.enable(all_threads=True)
            # What is held here by accident would hide its owner's death from those at the other end.
            for sock in foreign:
                sock.close()
            for sibling in self.by_pid.values():
                if sibling.link is not None:
                    sibling.link.close()
                if sibling.channel is not None:
                    sibling.channel.close()
            if child.channel is not None:
                child.channel.keeper.close()
            self._selector.close()
            return body(link)
        except BaseException:  # the last frame of this process: say why it ends, and never return
            logger.exception("process ended by an error")
            return CRASHED
