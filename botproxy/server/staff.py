"""How the processes of a team come to be, and what each of them does.

Forks a keeper or a worker with everything it needs and nothing else, gives it a seat, and
makes a worker known to its keeper. The bodies of the two kinds of process are put
together here. When somebody is hired, and who retires, is `server.supervisor`'s decision.
"""

from __future__ import annotations

import errno
import logging
import signal
import socket
from collections.abc import Callable
from math import inf, isinf

from botproxy.control import link
from botproxy.control.vitals import Pulse, Vitals
from botproxy.keeper import process as keeper
from botproxy.observe import logs
from botproxy.server import privileges
from botproxy.server.census import Seats
from botproxy.server.children import Channel, Child, Children, Closable
from botproxy.server.sockets import Listening, endpoint_of
from botproxy.server.team import Team
from botproxy.server.worker import Worker

logger = logging.getLogger(__name__)

START_PATIENCE = 30.0
"""Seconds within which a process must be ready."""
HANGING = 10.0
"""Seconds without a beat after which a process hangs."""
GRACE_AFTER_ABORT = 2.0
"""Seconds to write down where it hangs."""


class Staff:
    """Hires for teams, and ends who does not work."""

    def __init__(self, children: Children, listening: Listening, most: int) -> None:
        """`most`: processes that may be there at once."""
        self.seats = Seats(most)
        self.vitals = Vitals(most)
        self._children = children
        self._listening = listening

    def hire_keeper(self, team: Team, admin: socket.socket | None, foreign: list[Closable]) -> None:
        """Start the keeper of `team`, and tell it of the workers that are there. Raises OSError."""
        child = Child("keeper", seat=self._seat())
        endpoint = endpoint_of(team.arrangement.slots[0])
        slots = len(team.slots)

        def body(control: socket.socket) -> int:
            privileges.name_process("botproxy-keeper")
            privileges.close_ranks()
            self._listening.close()
            logs.setup(team.config.log.level, process="keeper")
            assert child.seat is not None
            pulse = Pulse(self.vitals, child.seat)
            return keeper.run(team.config, team.context, endpoint, control, admin, slots, pulse)

        self._fork(child, foreign, body)
        team.keeper = child
        for worker in team.workers.values():
            self.introduce(worker, child)

    def hire_worker(
        self, team: Team, slot: int, admin: socket.socket | None, foreign: list[Closable]
    ) -> Child:
        """Start a worker of `team` in `slot`, and tell the team's keeper of it. Raises OSError."""
        channel = Channel.make()
        try:
            child = Child(f"worker {slot}", slot, self._seat(), channel)
        except OSError:
            channel.close()
            raise
        bounds = team.arrangement.slots[slot]

        def body(control: socket.socket) -> int:
            self._listening.close(but=bounds)
            if admin is not None:
                admin.close()
            privileges.name_process("botproxy-worker")
            privileges.drop(team.account)
            privileges.close_ranks()
            assert child.channel is not None
            assert child.seat is not None
            worker = Worker(
                team.config, slot, child.seat, bounds, team.context, child.channel.worker, control,
                team.census, team.limiter, team.verifications, Pulse(self.vitals, child.seat),
            )  # fmt: skip
            return worker.run()

        self._fork(child, foreign, body)
        if team.keeper is not None:
            self.introduce(child, team.keeper)
        return child

    def introduce(self, worker: Child, keeper_: Child) -> None:
        """Make a worker known to a keeper."""
        if worker.channel is not None and worker.slot is not None:
            fd = worker.channel.keeper.fileno()
            self._children.tell(keeper_, link.Joined(worker.slot, worker.pid, fd))

    def retire(self, child: Child, change: int, patience: float) -> None:
        """Have `child` take nothing more, and end when it is done, or after `patience` seconds."""
        child.retired = change
        limited = not isinf(patience)
        self._children.tell(child, link.Retire(limited, int(patience * 1000) if limited else 0))
        if child.channel is not None:
            child.channel.close()
            child.channel = None

    def judge(self, child: Child, now: float, *, expected: bool) -> None:
        """End a process that hangs or, when it is `expected` to, does not become ready in time."""
        if child.seat is None or child.doomed or child.kill_at < inf:
            return
        beat = self.vitals.last_beat(child.seat)
        if beat and now - beat > HANGING:
            data = {"process": child.name, "pid": child.pid, "seconds": int(now - beat)}
            logger.error("a process hangs and is ended; where it hangs follows", extra={"data": data})
            self._children.signal([child], signal.SIGABRT)
            child.kill_at = now + GRACE_AFTER_ABORT
        elif not child.ready and expected and now - child.started > START_PATIENCE:
            data = {"process": child.name, "pid": child.pid, "seconds": int(START_PATIENCE)}
            logger.error("a process does not become ready and is ended", extra={"data": data})
            child.kill_at = now

    def bury(self, child: Child) -> None:
        """`child` has ended: its seat is free."""
        if child.seat is not None:
            self.vitals.forget(child.seat)
            self.seats.leave(child.seat)

    def _seat(self) -> int:
        seat = self.seats.take()
        if seat is None:
            raise OSError(errno.EAGAIN, "too many earlier processes are still ending")
        return seat

    def _fork(self, child: Child, foreign: list[Closable], body: Callable[[socket.socket], int]) -> None:
        try:
            self._children.fork(child, foreign, body)
        except OSError:
            assert child.seat is not None
            self.seats.leave(child.seat)
            if child.channel is not None:
                child.channel.close()
            raise
