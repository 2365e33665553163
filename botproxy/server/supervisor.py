"""The process that owns everything that must outlive a worker.

Binds the listening sockets, makes the certificate-less TLS context (whose ticket
keys every worker inherits) and the shared counts, forks the keeper and the workers,
replaces those that die, has new ones take over from old ones when the ticket keys
change, and turns signals into all of this. It has one thread and no event loop, because
it forks; it reads no request and no key.

Uses `server.children`. After: `keeper.process`, `server.worker`.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import random
import selectors
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf

from botproxy.config.schema import Config
from botproxy.config.state import admin_socket, make_state_dir
from botproxy.control import link
from botproxy.control.packets import PacketError
from botproxy.keeper import admin
from botproxy.keeper import process as keeper
from botproxy.observe import logs
from botproxy.server import privileges, sockets
from botproxy.server.census import Census, SharedLimiter
from botproxy.server.children import SIGNALS, Channel, Child, Children
from botproxy.server.worker import CUT, Worker
from botproxy.tls.context import listener_context
from botproxy.upstream.dial import verifications

logger = logging.getLogger(__name__)

FAILED = 1
MISCONFIGURED = 2
START_PATIENCE = 30.0
"""Seconds within which every process must be ready, at the start and when workers change."""
LONGEST_SLEEP = 5.0
GRACE_AFTER_DRAIN = 5.0
"""What workers get beyond the drain time before they are killed."""
GRACE_AFTER_CUT = 3.0
FIRST_BACKOFF = 0.1
LONGEST_BACKOFF = 30.0
STABLE_AFTER = 10.0
"""A process that lived this long starts its back-off anew."""
DRAINING = 2
"""Changes of workers whose old ones may still drain; those of earlier ones are ended."""
SEATS = 2 + DRAINING
"""For each slot: one that serves, one that comes, those that drain."""
KEEPER = -1
"""Its place among the slots, for back-off."""


@dataclass(slots=True)
class _Shift:
    """Workers that are about to take over, with ticket keys of their own."""

    context: ssl.SSLContext
    begun: float
    workers: dict[int, Child] = field(default_factory=dict)


class Supervisor:
    """One run of botproxy."""

    def __init__(self, config: Config, announce: Callable[[list[str]], None] | None = None) -> None:
        """`announce` is called with the https addresses once every worker serves."""
        self._config = config
        self._announce = announce
        self._slots = range(os.cpu_count() or 1 if config.workers == "auto" else config.workers)
        self._selector = selectors.DefaultSelector()
        self._children = Children(self._selector)
        self._keeper: Child | None = None
        self._workers: dict[int, Child] = {}
        """Who serves, by slot."""
        self._shift: _Shift | None = None
        self._shifts = 0
        self._seats = set(range(len(self._slots) * SEATS))
        self._due: dict[int, float] = {}
        """When to start again what ended, by slot."""
        self._backoff = dict.fromkeys((*self._slots, KEEPER), FIRST_BACKOFF)
        self._ever_ready = False
        self._stopping = False
        self._exit = 0
        self._start_by = time.monotonic() + START_PATIENCE

    def run(self) -> int:
        """Serve until told to stop. Returns the exit status; raises ConfigError before anything is begun."""
        self._verifications = verifications(self._config.upstreams)
        make_state_dir(self._config)
        path = admin_socket(self._config)
        self._admin = admin.bind(path) if path is not None else None
        try:
            try:
                self._account = privileges.worker_account(self._config.user)
                self._bounds = sockets.bind_all(
                    self._config.listen, self._config.plain_listen, len(self._slots)
                )
            except (privileges.PrivilegeError, sockets.BindError) as error:
                logger.error("cannot start", extra={"data": {"why": str(error)}})
                return FAILED
            self._prepare()
            try:
                with self._signals():
                    self._start_keeper()
                    while self._children or (self._due and not self._stopping):
                        self._turn()
            finally:
                sockets.close_all(self._bounds)
        finally:
            if self._admin is not None and path is not None:
                self._admin.close()
                path.unlink(missing_ok=True)
        return self._exit

    # Start

    def _prepare(self) -> None:
        config = self._config
        privileges.name_process("botproxy-super")
        allowed = privileges.connections_within(privileges.raise_descriptor_limit(), len(config.upstreams))
        total = min(config.limits.connections, allowed)
        if total < config.limits.connections:
            logger.warning(
                "limits.connections lowered to fit the limit on open files",
                extra={"data": {"from": config.limits.connections, "to": total}},
            )
        self._census = Census(len(self._seats), total, config.limits.connections_per_address)
        self._limiter = SharedLimiter(config.limits.rate, [route.rate for route in config.routes])
        self._context = listener_context(config.tls)
        self._shift_at = self._next_shift()
        gc.collect()
        gc.freeze()  # what exists now is shared with the children and should stay untouched

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals become bytes in a socket, which `_turn` waits for beside the children's links."""
        self._wakeup, far = socket.socketpair()
        self._far = far
        for sock in (self._wakeup, far):
            sock.setblocking(False)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            self._wakeup.close()
            far.close()

    def _start_keeper(self) -> None:
        endpoint = sockets.endpoint_of(self._bounds[0])

        def body(control: socket.socket) -> int:
            privileges.name_process("botproxy-keeper")
            sockets.close_all(self._bounds)
            logs.setup(self._config.log.level, process="keeper")
            slots = len(self._slots)
            return keeper.run(self._config, self._context, endpoint, control, self._admin, slots)

        child = Child("keeper")
        self._children.fork(child, (self._wakeup, self._far), body)
        self._keeper = child
        for worker in (*self._workers.values(), *(self._shift.workers.values() if self._shift else ())):
            self._introduce(worker)

    def _start_worker(self, slot: int, context: ssl.SSLContext) -> Child:
        """Raises OSError when the machine has no room for another process."""
        if not self._seats:
            raise OSError(errno.EAGAIN, "too many earlier workers still drain")
        child = Child(f"worker {slot}", slot, self._seats.pop(), Channel.make())

        def body(control: socket.socket) -> int:
            for other, bounds in enumerate(self._bounds):
                if other != slot:
                    sockets.close_all([bounds])
            if self._admin is not None:
                self._admin.close()
            privileges.name_process("botproxy-worker")
            privileges.drop(self._account)
            assert child.channel is not None
            worker = Worker(
                self._config,
                slot,
                child.seat,
                self._bounds[slot],
                context,
                child.channel.worker,
                control,
                self._census,
                self._limiter,
                self._verifications,
            )
            return worker.run()

        try:
            self._children.fork(child, (self._wakeup, self._far), body)
        except OSError:
            self._seats.add(child.seat)
            assert child.channel is not None
            child.channel.close()
            raise
        self._introduce(child)
        return child

    def _introduce(self, worker: Child) -> None:
        """Make a worker known to the keeper."""
        if self._keeper is not None and worker.channel is not None and worker.slot is not None:
            fd = worker.channel.keeper.fileno()
            self._children.tell(self._keeper, link.Joined(worker.slot, worker.pid, fd))

    # Life

    def _turn(self) -> None:
        now = time.monotonic()
        kills = [child.kill_at for child in self._children]
        wake_at = min([*kills, *self._due.values(), self._shift_at, now + LONGEST_SLEEP])
        for key, _ in self._selector.select(max(0.0, wake_at - now)):
            if key.fileobj is self._wakeup:
                for number in set(self._wakeup.recv(4096)):
                    self._on_signal(number)
            elif isinstance(key.data, Child) and key.data.pid in self._children.by_pid:
                self._on_link(key.data)  # unless it was reaped in this very turn
        self._on_time(time.monotonic())

    def _on_time(self, now: float) -> None:
        for child in self._children:
            if now >= child.kill_at:
                child.kill_at = inf
                self._children.signal([child], signal.SIGKILL)
        if self._stopping:
            return
        for slot in [slot for slot, due in self._due.items() if now >= due]:
            del self._due[slot]
            self._begin_again(slot)
        for child in self._children:
            if self._ever_ready and not child.ready and now >= child.started + START_PATIENCE:
                data = {"process": child.name, "pid": child.pid, "seconds": START_PATIENCE}
                logger.error("a process does not become ready and is replaced", extra={"data": data})
                self._children.signal([child], signal.SIGKILL)
        if now >= self._start_by and not self._ever_ready:
            logger.error("cannot start", extra={"data": {"why": "not every process became ready in time"}})
            self._exit = FAILED
            self._stop()
        elif now >= self._shift_at and self._ever_ready:
            self._begin_shift()
        if self._shift is not None and now >= self._shift.begun + START_PATIENCE:
            self._give_up_shift("the new workers did not become ready in time")

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            for child, code in self._children.reap():
                self._bury(child, code)
        elif number in (signal.SIGTERM, signal.SIGINT):
            if self._stopping:
                logger.warning("cutting connections")
                self._children.signal(self._everybody_else(), CUT)
                self._kill_after(GRACE_AFTER_CUT)
            else:
                self._stop()
        elif number == signal.SIGHUP and self._keeper is not None:
            logger.info("told to look at the certificates again")
            self._children.tell(self._keeper, link.Reload())

    def _on_link(self, child: Child) -> None:
        try:
            message = link.from_child(child.link)
        except PacketError as error:
            data = {"process": child.name, "why": str(error)}
            logger.error("bad message from a process", extra={"data": data})
            return
        except (EOFError, OSError):
            self._children.deafen(child)  # it is about to be reaped
            return
        if self._stopping:
            return  # told to stop while it was still starting
        match message:
            case link.Ready():
                child.ready = True
                self._on_ready(child)
            case link.Replace(pid=pid):
                found = self._children.by_pid.get(pid)
                if child is self._keeper and found is not None and found.slot is not None:
                    self._children.signal([found], signal.SIGKILL)
            case link.Rotate() if child is self._keeper:
                self._begin_shift()

    def _on_ready(self, child: Child) -> None:
        if child is self._keeper:
            if not self._ever_ready:
                for slot in self._slots:
                    self._begin_again(slot)
            return
        if not self._ever_ready and self._is_complete(self._workers):
            self._ever_ready = True
            urls = [_url(bound) for bound in self._bounds[0] if bound.tls]
            logger.info("serving", extra={"data": {"listen": " ".join(urls), "workers": len(self._slots)}})
            if self._announce is not None:
                self._announce(urls)
        if self._shift is not None and self._is_complete(self._shift.workers):
            self._change_shift(self._shift)

    def _is_complete(self, workers: dict[int, Child]) -> bool:
        return all(slot in workers and workers[slot].ready for slot in self._slots)

    # Death

    def _bury(self, child: Child, code: int) -> None:
        if child.slot is not None:
            self._census.forget(child.seat)
            self._seats.add(child.seat)
        if child is self._keeper:
            self._keeper = None
        if self._stopping:
            self._after_stop()
        elif not self._ever_ready:
            self._exit = code if code in (FAILED, MISCONFIGURED) else FAILED
            logger.error("cannot start", extra={"data": {"process": child.name, "exit": code}})
            self._stop()
        elif child.slot is None:
            self._plan_again(KEEPER, child, code, "the keeper ended, workers serve on; it is replaced")
        elif self._workers.get(child.slot) is child:
            del self._workers[child.slot]
            self._plan_again(child.slot, child, code, "a worker ended and is replaced")
        elif self._shift is not None and self._shift.workers.get(child.slot) is child:
            self._give_up_shift(f"{child.name} ended with {code}")

    def _plan_again(self, slot: int, child: Child, code: int, phrase: str) -> None:
        if time.monotonic() - child.started >= STABLE_AFTER:
            self._backoff[slot] = FIRST_BACKOFF
        delay = self._delay(slot)
        logger.error(
            phrase,
            extra={"data": {"process": child.name, "pid": child.pid, "exit": code, "in_seconds": delay}},
        )

    def _delay(self, slot: int) -> float:
        """Seconds until the next start in this slot, which is planned; longer each time."""
        delay = self._backoff[slot]
        self._backoff[slot] = min(LONGEST_BACKOFF, delay * 2)
        self._due[slot] = time.monotonic() + delay
        return delay

    def _begin_again(self, slot: int) -> None:
        try:
            if slot == KEEPER:
                self._start_keeper()
            else:
                self._workers[slot] = self._start_worker(slot, self._context)
        except OSError as error:
            data = {"slot": slot, "why": error.strerror, "in_seconds": self._delay(slot)}
            logger.error("a process cannot be started", extra={"data": data})

    # New ticket keys

    def _next_shift(self) -> float:
        interval = self._config.tls.ticket_rotation
        return time.monotonic() + interval * random.uniform(0.9, 1.1) if interval else inf

    def _begin_shift(self) -> None:
        """Start workers with new ticket keys beside those that serve."""
        if self._shift is not None:
            return
        self._shift_at = self._next_shift()
        shift = self._shift = _Shift(listener_context(self._config.tls), time.monotonic())
        try:
            for slot in self._slots:
                shift.workers[slot] = self._start_worker(slot, shift.context)
        except OSError as error:
            self._give_up_shift(error.strerror or "no room for another process")

    def _change_shift(self, shift: _Shift) -> None:
        """The new ones serve: the old ones take no more connections, and end with their last one."""
        self._shift = None
        self._shifts += 1
        old, self._workers, self._context = list(self._workers.values()), shift.workers, shift.context
        for slot in self._slots:
            self._due.pop(slot, None)
        for worker in old:
            worker.retired = self._shifts
            self._children.tell(worker, link.Retire())
            if worker.channel is not None:
                worker.channel.close()
                worker.channel = None
        late = [c for c in self._children if c.retired is not None and c.retired <= self._shifts - DRAINING]
        self._end(late)
        logger.info("new session ticket keys are in use", extra={"data": {"workers": len(shift.workers)}})
        self._answer_rotation("")

    def _give_up_shift(self, why: str) -> None:
        shift, self._shift = self._shift, None
        assert shift is not None
        self._children.signal(shift.workers.values(), signal.SIGKILL)
        logger.error("the session ticket keys stay the old ones", extra={"data": {"why": why}})
        self._answer_rotation(why)

    def _answer_rotation(self, problem: str) -> None:
        if self._keeper is not None:
            self._children.tell(self._keeper, link.Rotated(problem))

    # End

    def _everybody_else(self) -> list[Child]:
        return [child for child in self._children if child.slot is not None]

    def _stop(self) -> None:
        self._stopping = True
        drain = self._config.timeouts.drain
        if self._ever_ready:
            logger.info("stopping", extra={"data": {"drain_seconds": drain}})
        sockets.close_all(self._bounds)
        self._end(self._everybody_else())
        self._after_stop()

    def _end(self, workers: list[Child]) -> None:
        """Have workers end in order, within the time that a stop grants."""
        self._children.signal(workers, signal.SIGTERM)
        for worker in workers:
            worker.kill_at = time.monotonic() + self._config.timeouts.drain + GRACE_AFTER_DRAIN

    def _after_stop(self) -> None:
        """The keeper ends last: it still answers `botproxy health` while workers drain."""
        if not self._everybody_else():
            self._children.signal(self._children, signal.SIGTERM)
            self._kill_after(GRACE_AFTER_CUT)

    def _kill_after(self, seconds: float) -> None:
        for child in self._children:
            child.kill_at = min(child.kill_at, time.monotonic() + seconds)


def run(config: Config, *, announce: Callable[[list[str]], None] | None = None) -> int:
    """Serve `config` until told to stop; blocks and forks. Returns the exit status."""
    return Supervisor(config, announce).run()


def _url(bound: sockets.Bound) -> str:
    host, port = bound.sock.getsockname()[:2]
    if host in ("::", "0.0.0.0"):
        host = "localhost"
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
