"""Who serves, who is about to, and who gives way.

One team serves. Another one may be coming: it takes over when its keeper and every worker
are ready, and not before, or it is given up and nothing has changed. Whoever dies in
service is started again, later each time. Old workers drain, those of at most two changes.
Why a change is wanted, and what the operator hears of it, is `server.supervisor`'s affair.

Uses `server.staff`. Told of everything by `server.supervisor`.
"""

from __future__ import annotations

import logging
import random
import signal
import socket
import time
from collections.abc import Callable, Iterable
from math import inf

from botproxy.control import link
from botproxy.server.backoff import Backoff
from botproxy.server.children import Child, Children, Closable
from botproxy.server.sockets import Listening
from botproxy.server.staff import Staff
from botproxy.server.team import MOST_WORKERS, Team

logger = logging.getLogger(__name__)

DRAINING = 2
"""Changes whose old workers may still drain; those of earlier ones are cut."""
MOST_PROCESSES = (MOST_WORKERS + 1) * (4 + DRAINING)
"""Keepers, and workers in each slot: those that serve, come, relieve, drain, and were just cut."""
GRACE_AFTER_CUT = 3.0
"""Seconds that a process gets to end once it was told to end at once."""
ROTATE_AGAIN = 60.0
"""Seconds until new ticket keys are tried again, at most."""
KEEPER = -1
"""Its place among the slots, for back-off."""


class Crew:
    """All keepers and workers."""

    def __init__(
        self,
        staff: Staff,
        children: Children,
        listening: Listening,
        concluded: Callable[[Team, Team, tuple[str, ...]], None],
    ) -> None:
        """`concluded` is told how a change ended: the team before, the one that was to come, and
        the problems, without which it serves now."""
        self.team: Team | None = None
        """Who serves, or is about to for the first time."""
        self.coming: Team | None = None
        self.changes = 0
        self.backoff = Backoff()
        self._before: Team | None = None
        """Who served until now, while some of it may still accept."""
        self._accepting: set[Child] = set()
        """Its workers that have not said yet that they accept no more."""
        self._relief: dict[int, Child] = {}
        """Workers that take over from one that grew too large, by slot."""
        self._staff = staff
        self._children = children
        self._listening = listening
        self._concluded = concluded

    @property
    def is_changing(self) -> bool:
        return self.coming is not None or self._before is not None

    @property
    def has_keeper(self) -> bool:
        return self.team is not None and self.team.keeper is not None

    @property
    def status(self) -> str:
        assert self.team is not None
        serving = sum(worker.ready for worker in self.team.workers.values())
        return f"serving with {serving} of {len(self.team.slots)} workers"

    def rotate_at(self, *, failed: bool = False) -> float:
        """When the ticket keys are too old, give or take a tenth, in monotonic seconds.

        `failed`: when it is to be tried again.
        """
        assert self.team is not None
        interval = self.team.config.tls.ticket_rotation
        if not interval:
            return inf
        if failed:
            return time.monotonic() + min(interval, ROTATE_AGAIN)
        return self.team.keys_made + interval * random.uniform(0.9, 1.1)

    # Beginnings

    def start(self, team: Team, admin: socket.socket | None, foreign: list[Closable]) -> None:
        """`team` is the first. `admin`: the socket that keepers answer. `foreign`: what nobody may hold."""
        self.team = team
        self._admin, self._foreign = admin, foreign
        self._hire_keeper(team)

    def propose(self, team: Team) -> None:
        """`team` takes over when it is ready; if it has a keeper already, only its workers are to come."""
        self.coming = team
        if team.keeper is not None:
            self._hire_workers(team)
            return
        try:
            self._hire_keeper(team)
        except OSError as error:
            self.give_up(error.strerror or "no room for another process")

    def relieve(self, large: Child) -> None:
        """Start a worker that takes over from one that grew too large."""
        team, slot = self.team, large.slot
        if team is None or slot is None or team.workers.get(slot) is not large or slot in self._relief:
            return
        if self.coming is None:  # else all of them give way anyhow
            try:
                self._relief[slot] = self._staff.hire_worker(team, slot, self._admin, self._foreign)
            except OSError as error:
                logger.error("no worker can take over", extra={"data": {"slot": slot, "why": error.strerror}})

    def begin_again(self, now: float) -> None:
        """Start what ended and whose time has come."""
        assert self.team is not None
        for slot in self.backoff.due(now):
            if slot in self.team.slots:
                self._hire_worker(self.team, slot)
            elif slot == KEEPER:
                try:
                    self._hire_keeper(self.team)
                except OSError as error:
                    self._cannot_start("keeper", KEEPER, error)

    # What is heard of them

    def ready(self, child: Child) -> None:
        """A process does its work from now on."""
        for team in (self.team, self.coming):
            if team is not None and child is team.keeper and not team.workers:
                self._hire_workers(team)
        if child.slot is not None and self._relief.get(child.slot) is child:
            self._end_relief(child, child.slot)
        if self.coming is not None and self.coming.is_complete:
            self._take_over(self.coming)

    def gave_way(self, child: Child) -> None:
        """An old worker accepts no more: it said so, or has ended."""
        self._accepting.discard(child)
        if self._before is not None and not self._accepting:
            self._conclude(self._before)

    def lost(self, child: Child, code: int) -> None:
        """Whoever died in service is started again; whoever died before ends what it was started for."""
        team, coming = self.team, self.coming
        assert team is not None
        if child is team.keeper:
            team.keeper = None
            self._plan(KEEPER, child, code, "the keeper ended, workers serve on; it is replaced")
        elif child.slot is not None and team.workers.get(child.slot) is child:
            del team.workers[child.slot]
            self._plan(child.slot, child, code, "a worker ended and is replaced")
        elif child.slot is not None and self._relief.get(child.slot) is child:
            del self._relief[child.slot]
        if coming is not None and (child is coming.keeper or child in coming.workers.values()):
            self.give_up(*(child.problems or (f"{child.name} ended with {code} before it was ready",)))

    # Ends

    def give_up(self, *problems: str) -> None:
        """The team that was to come does not: the old one serves on."""
        team, self.coming = self.coming, None
        assert team is not None
        assert self.team is not None
        self._dismiss(team.workers.values(), team)
        if team.keeper is not None and team.keeper is not self.team.keeper:
            self._dismiss([team.keeper], team)
        if team.arrangement is not self.team.arrangement:
            self._listening.undo(team.arrangement)
        self._concluded(self.team, team, problems)

    def cut(self, children: Iterable[Child]) -> None:
        """Have them end at once what they serve; whoever does not is killed."""
        for child in tuple(children):
            if child.is_worker:
                self._children.tell(child, link.Retire(True, 0))
            child.kill_at = min(child.kill_at, time.monotonic() + GRACE_AFTER_CUT)

    def retire(self, patience: float) -> None:
        """Everybody gives way to another program."""
        assert self.team is not None
        self.changes += 1
        for child in self._children:
            if child.is_worker and child.retired is None:
                self._staff.retire(child, self.changes, patience)
        if self.team.keeper is not None:
            self._staff.retire(self.team.keeper, self.changes, 0.0)

    # Private

    def _take_over(self, team: Team) -> None:
        """The new team serves: the old one takes no more connections, and ends with its last one."""
        old = self.team
        assert old is not None
        self.team, self.coming = team, None
        self.changes += 1
        for slot in (*old.slots, KEEPER):
            self.backoff.forget(slot)
        reliefs, self._relief = list(self._relief.values()), {}
        self._dismiss(reliefs, old)
        self._listening.keep_only(team.arrangement)
        # New ticket keys alone are no reason to end what is open.
        patience = inf if team.config is old.config else old.config.timeouts.retire
        self._before, self._accepting = old, set(old.workers.values())
        for worker in old.workers.values():
            self._staff.retire(worker, self.changes, patience)
        self._cut_late()
        if team.keeper is not None and team.keeper is not old.keeper:
            self._children.tell(team.keeper, link.Serve())
        if not self._accepting:
            self._conclude(old)

    def _conclude(self, old: Team) -> None:
        """From now on every new connection is the new team's, so the world is told."""
        self._before = None
        assert self.team is not None
        self._concluded(old, self.team, ())
        if old.keeper is not None and old.keeper is not self.team.keeper:
            self._staff.retire(old.keeper, self.changes, 0.0)

    def _dismiss(self, children: Iterable[Child], team: Team) -> None:
        """They are not needed after all; whoever serves clients already may finish."""
        for child in children:
            if child.ready and child.is_worker:
                self._staff.retire(child, self.changes, team.config.timeouts.retire)
            else:
                child.retired, child.doomed = self.changes, True
                self._children.signal([child], signal.SIGKILL)

    def _cut_late(self) -> None:
        self.cut(c for c in self._children if c.retired is not None and c.retired <= self.changes - DRAINING)

    def _end_relief(self, relief: Child, slot: int) -> None:
        assert self.team is not None
        del self._relief[slot]
        large = self.team.workers.get(slot)
        self.team.workers[slot] = relief
        self.backoff.forget(slot)
        if large is not None:
            self._staff.retire(large, self.changes, self.team.config.timeouts.retire)
        drain = [c for c in self._children if c.slot == slot and c.retired is not None]
        self.cut(drain[:-DRAINING])  # the oldest come first

    def _hire_keeper(self, team: Team) -> None:
        self._staff.hire_keeper(team, self._admin, self._foreign)
        if team is self.team and team.keeper is not None:
            for relief in self._relief.values():
                self._staff.introduce(relief, team.keeper)
            self._children.tell(team.keeper, link.Serve())

    def _hire_workers(self, team: Team) -> None:
        for slot in team.slots:
            if team in (self.team, self.coming):  # else it was given up meanwhile
                self._hire_worker(team, slot)

    def _hire_worker(self, team: Team, slot: int) -> None:
        if team is self.team:
            self.backoff.plans.pop(slot, None)  # a new keeper hires at once
        try:
            team.workers[slot] = self._staff.hire_worker(team, slot, self._admin, self._foreign)
        except OSError as error:
            if team is self.coming:
                self.give_up(error.strerror or "no room for another process")
            else:
                self._cannot_start(f"worker {slot}", slot, error)

    def _cannot_start(self, name: str, slot: int, error: OSError) -> None:
        delay = self.backoff.plan(slot, time.monotonic(), 0.0)
        data = {"process": name, "why": error.strerror, "in_seconds": delay}
        logger.error("a process cannot be started", extra={"data": data})

    def _plan(self, slot: int, child: Child, code: int, phrase: str) -> None:
        now = time.monotonic()
        delay = self.backoff.plan(slot, now, now - child.started)
        data = {"process": child.name, "pid": child.pid, "exit": code, "in_seconds": delay}
        logger.error(phrase, extra={"data": data})
