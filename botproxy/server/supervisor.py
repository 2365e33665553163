"""The process that owns everything that must outlive a worker.

Holds the listening sockets, the counts and the vitals that all share; ends processes that
hang, has a new team take over from an old one when the configuration or the ticket keys
change, and a successor when the program itself does. Turns signals into all of this. It
has one thread and no event loop, because it forks; it reads no request and no key.

Uses `server.crew`, `server.team`, `server.reading`, `server.upgrade`.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import TYPE_CHECKING

from botproxy import __version__
from botproxy.config.state import make_state_dir
from botproxy.control import link
from botproxy.control.packets import PacketError
from botproxy.errors import ConfigError
from botproxy.server import privileges, sockets, upgrade
from botproxy.server.bot import Bot, adopt_orphans, exit_code
from botproxy.server.children import Child, Children, Closable
from botproxy.server.crew import GRACE_AFTER_CUT, MOST_PROCESSES, Crew
from botproxy.server.desk import Desk
from botproxy.server.notify import Notifier
from botproxy.server.reading import Reading
from botproxy.server.signals import FOR_BOTS, STOPS, Signals
from botproxy.server.staff import HANGING, START_PATIENCE, Staff
from botproxy.server.team import Team, assemble, check_change

if TYPE_CHECKING:
    from botproxy.config.schema import Config

logger = logging.getLogger(__name__)

FAILED = 1
MISCONFIGURED = 2
LONGEST_SLEEP = 1.0
GRACE_AFTER_DRAIN = 5.0
"""What workers get beyond the drain time before they are killed."""
STORM = 0.2
"""Seconds in which several wishes to reload become one."""


class Supervisor:
    """One run of botproxy."""

    def __init__(
        self,
        config: Config,
        *,
        announce: Callable[[list[str]], None] | None = None,
        read_again: Callable[[], Config] | None = None,
        bot: Sequence[str] = (),
    ) -> None:
        """`announce` is called with the https addresses once every worker serves.

        `read_again` reads the configuration anew, in a child, or raises ConfigError; None: it cannot change.
        `bot`: the command that starts it; empty: somebody else does.
        """
        self._config = config
        self._announce = announce
        self._read_again = read_again or (lambda: config)
        # What must outlive everybody
        self._notifier = Notifier(os.environ)
        self._inherited = upgrade.inherit(os.environ)
        self._stays = os.getpid() == 1 or self._inherited.stays
        self._listening = sockets.Listening(self._inherited.listening)
        self._desk = Desk(self._inherited.admin)
        self._selector = selectors.DefaultSelector()
        self._children = Children(self._selector)
        self._staff = Staff(self._children, self._listening, MOST_PROCESSES)
        self._crew = Crew(self._staff, self._children, self._listening, self._concluded)
        self._bot = Bot(bot, self._children, self._ours) if bot else None
        self._successor: Child | None = None
        """A new version of this program, which is about to take over for good."""
        self._reading: Reading | None = None
        # When to do what, in monotonic seconds
        self._reload_at = inf
        self._change_begun = 0.0
        self._upgrade_at = inf
        self._rotate_at = inf
        self._judge_at = 0.0
        self._awake = time.monotonic()
        self._start_by = self._awake + START_PATIENCE
        # How far it has come
        self._ever_ready = False
        self._stopping = False
        self._ending = False
        """Whether workers were told to end within the drain time."""
        self._exit = 0

    def run(self) -> int:
        """Serve until told to stop; blocks and forks.

        Returns the exit status; raises ConfigError before anything is begun.
        """
        try:
            make_state_dir(self._config)
            self._desk.open(self._config)
            try:
                team = assemble(self._config, self._listening, self._staff.seats)
            except sockets.BindError as error:
                logger.error("cannot start", extra={"data": {"why": str(error)}})
                return FAILED
            privileges.name_process("botproxy-super")
            privileges.close_ranks()
            gc.collect()
            gc.freeze()  # what exists now is shared with the children and should stay untouched
            with Signals() as self._signals, self._selector:
                return self._serve(team)
        finally:
            self._listening.close()
            self._desk.close()

    def _serve(self, team: Team) -> int:
        self._selector.register(self._signals.sock, selectors.EVENT_READ)
        self._foreign: list[Closable] = [*self._signals.sockets, *filter(None, [self._inherited.link])]
        try:
            self._crew.start(team, self._desk.sock, self._foreign)
        except OSError as error:
            logger.error("cannot start", extra={"data": {"process": "keeper", "why": error.strerror}})
            return FAILED
        if self._bot is not None:
            adopt_orphans()
            self._bot.account = team.account
            self._bot.start()
        while self._is_needed():
            self._turn()
        return self._exit

    # Life

    def _is_needed(self) -> bool:
        if self._crew.backoff.plans and not self._stopping:
            return True
        # A container lives as long as its first process: that one stays, and passes on what it is told. So
        # do those between it and the one that serves, for it knows only the first of them.
        stays = self._stays
        return any(child is not self._successor or stays or not child.ready for child in self._children)

    def _turn(self) -> None:
        now = time.monotonic()
        wake_at = min([*self._plans(), now + min(LONGEST_SLEEP, self._notifier.watchdog or inf)])
        for key, _ in self._selector.select(max(0.0, wake_at - now)):
            if key.fileobj is self._signals.sock:
                for number in self._signals.arrived():
                    self._on_signal(number)
            elif isinstance(key.data, Child) and key.data.pid in self._children.by_pid:
                self._on_link(key.data)  # unless it was reaped in this very turn
        self._on_time(time.monotonic())

    def _plans(self) -> Iterator[float]:
        """When something is to be done, in monotonic seconds. What has to wait for something else is not
        among them, for its time may have passed already."""
        for child in self._children:
            yield child.kill_at
        if self._stopping:
            return
        yield from self._crew.backoff.plans.values()
        if self._bot is not None:
            yield self._bot.start_at
        if self._ever_ready and not self._is_changing:
            yield self._reload_at
            yield self._upgrade_at

    @property
    def _is_changing(self) -> bool:
        """One change after the other."""
        return self._crew.is_changing or self._successor is not None or self._reading is not None

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            for child, code in self._children.reap(self._hear_out):
                self._bury(child, code)
        elif self._successor is not None and self._successor.ready:
            self._children.signal([self._successor], signal.Signals(number))
            if number in STOPS:
                self._end_workers()
        elif self._bot is not None and number in FOR_BOTS:
            self._bot.signal(signal.Signals(number))
        elif number in STOPS:
            if self._stopping:
                self._end_workers()
                if self._bot is not None:
                    self._bot.stop()
                self._kill_within(GRACE_AFTER_CUT)
            else:
                self._stop()
        elif number == signal.SIGHUP:
            self._reload_at = min(self._reload_at, time.monotonic() + STORM)
        elif number == signal.SIGUSR2:
            self._upgrade_at = time.monotonic()
        elif number == signal.SIGUSR1:
            logger.info("SIGUSR1 is for bots: there is no log file to open again")

    def _hear_out(self, child: Child) -> None:
        """What it said before it ended is why it ended."""
        while child.link is not None and self._on_link(child):
            pass

    def _on_link(self, child: Child) -> bool:
        """Whether there may be more to hear."""
        assert child.link is not None
        try:
            message = link.from_child(child.link)
        except PacketError as error:
            data = {"process": child.name, "why": str(error)}
            logger.error("bad message from a process", extra={"data": data})
            return True
        except (EOFError, OSError):
            self._children.deafen(child)  # it is about to be reaped
            return False
        if not self._stopping:  # else it was told to stop while it was still starting
            self._obey(child, message)
        return message is not None

    def _obey(self, child: Child, message: link.ToSupervisor | None) -> None:
        match message:
            case link.Ready():
                child.ready = True
                self._on_ready(child)
            case link.Failed(problems=problems):
                child.problems = problems
            case link.Recycle():
                self._crew.relieve(child)
            case link.Retired():
                self._crew.gave_way(child)
            case link.Replace(pid=pid):
                found = self._children.by_pid.get(pid)
                if found is not None and found.is_worker:
                    self._children.signal([found], signal.SIGKILL)
            case link.Rotate():
                self._rotate_at = time.monotonic()
            case link.Reconfigure():
                self._reload_at = time.monotonic()

    def _on_ready(self, child: Child) -> None:
        if child is self._successor:
            child.kill_at = inf
            self._give_way(child)
            return
        self._crew.ready(child)
        if not self._ever_ready and self._crew.team is not None and self._crew.team.is_complete:
            self._begin_service(self._crew.team)

    def _begin_service(self, team: Team) -> None:
        self._ever_ready = True
        self._listening.keep_only(team.arrangement)  # a predecessor may have had more
        self._rotate_at = self._crew.rotate_at()
        urls = list(dict.fromkeys(sockets.url_of(bound) for bound in team.arrangement.slots[0] if bound.tls))
        data = {"listen": " ".join(urls), "workers": len(team.slots), "version": __version__}
        logger.info("serving", extra={"data": data})
        self._notifier.ready(self._crew.status)
        if self._inherited.link is not None:
            with contextlib.suppress(OSError):  # whoever was there before has ended already
                upgrade.take_over(self._inherited.link)
            self._desk.take_over()
        if self._announce is not None:
            self._announce(urls)

    def _on_time(self, now: float) -> None:
        # After a pause of the whole machine nobody has a beat, and all deadlines have passed at once.
        if now - self._awake > LONGEST_SLEEP + HANGING / 2:
            self._judge_at = now + HANGING
        self._awake = now
        for child in self._children:
            if now >= child.kill_at:
                child.kill_at, child.doomed = inf, True
                self._children.signal([child], signal.SIGKILL)
            elif now >= self._judge_at:
                self._staff.judge(child, now, expected=self._ever_ready)
        if self._stopping:
            return
        self._crew.begin_again(now)
        if self._bot is not None and now >= self._bot.start_at:
            self._bot.start()
        if not self._ever_ready:
            if now >= self._start_by:
                logger.error(
                    "cannot start", extra={"data": {"why": "not every process became ready in time"}}
                )
                self._exit = FAILED
                self._stop()
            return
        if now >= self._upgrade_at and not self._is_changing:
            self._begin_upgrade()
        if now >= self._reload_at and not self._is_changing:
            self._begin_reload()
        if now >= self._rotate_at and not self._is_changing and self._crew.has_keeper:
            self._begin_rotation()
        self._notifier.alive(now, self._crew.status)

    def _bury(self, child: Child, code: int) -> None:
        self._staff.bury(child)
        if self._bot is not None and child is self._bot.running:
            self._lose_bot(self._bot, code)
        elif child is self._successor:
            self._lose_successor(child, code)
        elif self._stopping:
            self._after_stop()
        elif self._reading is not None and child is self._reading.child:
            self._end_reading(self._reading, code)
        elif child.retired is not None:
            self._crew.gave_way(child)
        elif not self._ever_ready:
            self._exit = code if code in (FAILED, MISCONFIGURED) else FAILED
            logger.error("cannot start", extra={"data": {"process": child.name, "exit": code}})
            self._stop()
        else:
            self._crew.lost(child, code)

    def _lose_bot(self, bot: Bot, code: int) -> None:
        """Without a bot there is nothing to be in front of."""
        goes_on = bot.lost(code, again=not self._stopping)
        if self._stopping:
            self._exit = self._exit or exit_code(code)
            self._after_stop()
        elif not goes_on:
            self._exit = exit_code(code)
            self._stop()

    def _ours(self) -> list[Closable]:
        """What neither a bot nor who only reads may hold."""
        return [*self._foreign, *self._listening.flat(), *filter(None, [self._desk.sock])]

    # Changes

    def _begin_reload(self) -> None:
        """Have the configuration read again."""
        self._reload_at, self._change_begun = inf, time.monotonic()
        self._notifier.reloading()
        if upgrade.installed_version() != __version__:
            self._begin_upgrade()
            return
        try:
            self._reading = Reading(self._read_again, self._children, self._ours(), self._foreign)
        except ConfigError as error:
            self._refuse(*map(str, error.problems))

    def _end_reading(self, reading: Reading, code: int) -> None:
        """If the configuration is another one, have a new team take over."""
        team, self._reading = self._crew.team, None
        assert team is not None
        try:
            config = reading.result(code)
            if config == team.config:
                logger.info("the configuration is the same, the certificate files are looked at")
                self._say(team, link.Reconfigured(self._change_begun, False, ()))
                self._notifier.ready(self._crew.status)
                return
            check_change(team.config, config)
            coming = assemble(config, self._listening, self._staff.seats, team)
        except ConfigError as error:
            self._refuse(*map(str, error.problems))
        except (sockets.BindError, OSError) as error:
            self._refuse(str(error))
        else:
            self._crew.propose(coming)

    def _begin_rotation(self) -> None:
        """A team with new ticket keys, and the same keeper."""
        team = self._crew.team
        assert team is not None
        self._rotate_at = inf
        self._crew.propose(team.renewed())

    def _concluded(self, old: Team, team: Team, problems: tuple[str, ...]) -> None:
        """How a change of teams ended; `old` serves on if there were problems."""
        data: dict[str, object] = {"workers": len(team.slots)}
        if team.config is old.config:
            if problems:
                phrase = "the session ticket keys stay the old ones"
                logger.error(phrase, extra={"data": {"why": "; ".join(problems)}})
            else:
                logger.info("new session ticket keys are in use", extra={"data": data})
            self._rotate_at = self._crew.rotate_at(failed=bool(problems))
            self._say(old, link.Rotated(team.begun, "; ".join(link.shown(problems))))
        elif problems:
            self._refuse(*problems)
        else:
            logging.getLogger("botproxy").setLevel(team.config.log.level.upper())
            logger.info("the new configuration is in use", extra={"data": data})
            if self._rotate_at > time.monotonic():  # else somebody has asked for it meanwhile
                self._rotate_at = self._crew.rotate_at()
            self._say(old, link.Reconfigured(self._change_begun, True, ()))
        self._notifier.ready(self._crew.status)

    def _refuse(self, *problems: str, what: str = "configuration") -> None:
        """Everything stays as it was, and the reasons are told."""
        for problem in problems:
            logger.error("the new %s is refused, the old one stays", what, extra={"data": {"why": problem}})
        assert self._crew.team is not None
        self._say(self._crew.team, link.Reconfigured(self._change_begun, False, link.shown(problems)))
        self._notifier.ready(self._crew.status)

    def _say(self, team: Team, message: link.ToChild) -> None:
        if team.keeper is not None:
            self._children.tell(team.keeper, message)

    # A new version of the program

    def _begin_upgrade(self) -> None:
        self._upgrade_at, self._change_begun = inf, time.monotonic()
        if self._bot is not None:
            says = "a bot that runs as our child would end with us: restart both for a new version"
            self._refuse(says, what="version")
            return
        heritage = upgrade.Inheritance(self._listening.sockets(), self._desk.place, stays=self._stays)
        try:
            child = upgrade.start(self._children, self._foreign, heritage, self._notifier.environment())
        except OSError as error:
            self._refuse(error.strerror or "no room for another process", what="version")
            return
        child.kill_at = time.monotonic() + upgrade.PATIENCE
        self._successor = child
        data = {"pid": child.pid, "version": upgrade.installed_version()}
        logger.info("a successor is started", extra={"data": data})

    def _give_way(self, successor: Child) -> None:
        """It serves: take no more connections, and end when the last one has."""
        assert self._crew.team is not None
        logger.info("the successor serves, this process ends", extra={"data": {"pid": successor.pid}})
        self._notifier.gave_way(successor.pid, self._crew.status)
        self._say(self._crew.team, link.Reconfigured(self._change_begun, True, ()))
        if self._reload_at < inf:
            self._children.signal([successor], signal.SIGHUP)  # it may have read the configuration before
        self._desk.give_away()
        self._stopping = True
        self._listening.close()
        self._crew.retire(self._crew.team.config.timeouts.retire)

    def _lose_successor(self, successor: Child, code: int) -> None:
        if self._stopping and successor.ready:
            self._exit = exit_code(code)  # we have stayed for its sake
            if not self._ending:
                self._end_workers()
            return
        self._successor = None
        if self._stopping:
            self._after_stop()
        else:
            self._refuse(
                f"the successor ended with {code} before it served; see its messages", what="version"
            )

    # End

    @property
    def _drain(self) -> float:
        return (self._crew.team.config if self._crew.team else self._config).timeouts.drain

    def _stop(self) -> None:
        self._stopping = True
        self._listening.close()
        self._end_workers()
        self._notifier.stopping()
        if self._ever_ready:
            logger.info("stopping", extra={"data": {"drain_seconds": self._drain}})
        if self._successor is not None:
            self._children.signal([self._successor], signal.SIGTERM)
        self._after_stop()

    def _end_workers(self) -> None:
        """Within the drain time; at the second time at once."""
        workers = self._children.workers()
        if self._ending:
            logger.warning("cutting connections")
            self._crew.cut(workers)
            return
        self._ending = True
        self._children.signal(workers, signal.SIGTERM)
        for worker in workers:
            worker.kill_at = min(worker.kill_at, time.monotonic() + self._drain + GRACE_AFTER_DRAIN)

    def _after_stop(self) -> None:
        """The keeper ends last: it still answers `botproxy health` while workers drain."""
        if self._children.workers():
            return
        if self._bot is not None and self._bot.running is not None:
            self._bot.stop()  # it answers to the last, and has a time of its own to end
            return
        rest = [child for child in self._children if child is not self._successor or not child.ready]
        self._children.signal(rest, signal.SIGTERM)
        self._kill_within(GRACE_AFTER_CUT)

    def _kill_within(self, seconds: float) -> None:
        for child in self._children:
            if child is not self._successor or not child.ready:
                child.kill_at = min(child.kill_at, time.monotonic() + seconds)
