"""The process that owns everything that must outlive a worker.

Binds the listening sockets, makes the certificate-less TLS context (whose ticket
keys every worker inherits) and the shared counts, forks the keeper and the workers,
replaces those that die, and turns signals into their orderly end. It has one
thread and no event loop, because it forks; it reads no request and no key.

After: `keeper.process`, `server.worker`.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import selectors
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from botproxy.config.schema import Config
from botproxy.keeper import process as keeper
from botproxy.observe import logs
from botproxy.server import privileges, sockets
from botproxy.server.census import Census, SharedLimiter
from botproxy.server.worker import CUT, Worker
from botproxy.tls.context import listener_context
from botproxy.upstream.dial import verifications

logger = logging.getLogger(__name__)

FAILED = 1
MISCONFIGURED = 2
CRASHED = 70
"""Exit status of a child that ended by an error of ours (EX_SOFTWARE)."""
START_PATIENCE = 30.0
"""Seconds within which every process must be ready at the start."""
LONGEST_SLEEP = 5.0
GRACE_AFTER_DRAIN = 5.0
"""What workers get beyond the drain time before they are killed."""
GRACE_AFTER_CUT = 3.0
FIRST_BACKOFF = 0.1
LONGEST_BACKOFF = 30.0
STABLE_AFTER = 10.0
"""A worker that lived this long starts its back-off anew."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP)


@dataclass(slots=True)
class _Child:
    pid: int
    slot: int | None
    """Worker slot; None for the keeper."""
    link: socket.socket
    """Its `ready` comes over it, and its other end tells it when we die."""
    started: float
    ready: bool = False


class Supervisor:
    """One run of botproxy."""

    def __init__(self, config: Config, announce: Callable[[list[str]], None] | None = None) -> None:
        """`announce` is called with the https addresses once every worker serves."""
        self._config = config
        self._announce = announce
        self._workers = os.cpu_count() or 1 if config.workers == "auto" else config.workers
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, _Child] = {}
        self._due: dict[int, float] = {}
        """When to start the worker of a slot again."""
        self._backoff = [FIRST_BACKOFF] * self._workers
        self._ever_ready = False
        self._stopping = False
        self._kill_at = inf
        self._exit = 0
        self._start_by = time.monotonic() + START_PATIENCE

    def run(self) -> int:
        """Serve until told to stop. Returns the exit status; raises ConfigError before anything is begun."""
        self._verifications = verifications(self._config.upstreams)
        try:
            self._account = privileges.worker_account(self._config.user)
            self._bounds = sockets.bind_all(self._config.listen, self._config.plain_listen, self._workers)
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
            for pair in self._channels:
                for end in pair:
                    end.close()
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
        self._census = Census(self._workers, total, config.limits.connections_per_address)
        self._limiter = SharedLimiter(config.limits.rate, [route.rate for route in config.routes])
        self._context: ssl.SSLContext = listener_context(config.tls)
        self._channels = [
            socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            for _ in range(self._workers)
        ]
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
        before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
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
        ends = [ours for ours, _ in self._channels]

        def body(link: socket.socket) -> int:
            privileges.name_process("botproxy-keeper")
            sockets.close_all(self._bounds)
            for _, theirs in self._channels:
                theirs.close()
            logs.setup(self._config.log.level, process="keeper")
            # The keeper owns two descriptors, so that it may close the first once it has said `ready`.
            return keeper.run(self._config, self._context, ends, os.dup(link.fileno()), link.fileno())

        self._fork(None, body)

    def _start_worker(self, slot: int) -> None:
        self._census.forget(slot)

        def body(link: socket.socket) -> int:
            for other, bounds in enumerate(self._bounds):
                if other != slot:
                    sockets.close_all([bounds])
            for other, (ours, theirs) in enumerate(self._channels):
                ours.close()
                if other != slot:
                    theirs.close()
            privileges.name_process("botproxy-worker")
            privileges.drop(self._account)
            worker = Worker(
                self._config,
                slot,
                self._bounds[slot],
                self._context,
                self._channels[slot][1],
                link,
                self._census,
                self._limiter,
                self._verifications,
            )
            return worker.run()

        self._fork(slot, body)

    def _fork(self, slot: int | None, body: Callable[[socket.socket], int]) -> None:
        """Raises OSError when the machine has no room for another process."""
        ours, theirs = socket.socketpair()
        # Blocked, so that no signal reaches the child before it has stopped answering for its parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            raise
        else:
            if pid == 0:
                os._exit(self._child(ours, theirs, body))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            theirs.close()
        ours.setblocking(False)
        self._children[pid] = _Child(pid, slot, ours, time.monotonic())
        self._selector.register(ours, selectors.EVENT_READ, pid)

    def _child(self, ours: socket.socket, theirs: socket.socket, body: Callable[[socket.socket], int]) -> int:
        try:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            for ignored in (signal.SIGINT, signal.SIGHUP):  # the terminal sends them to all of us
                signal.signal(ignored, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            # A link held here by accident would hide the supervisor's death from its owner.
            for sock in (ours, self._wakeup, self._far, *(child.link for child in self._children.values())):
                sock.close()
            self._selector.close()
            return body(theirs)
        except BaseException:  # the last frame of this process: say why it ends, and never return
            logger.exception("process ended by an error")
            return CRASHED

    # Life

    def _turn(self) -> None:
        now = time.monotonic()
        wake_at = min(self._kill_at, *self._due.values(), now + LONGEST_SLEEP)
        for key, _ in self._selector.select(max(0.0, wake_at - now)):
            if key.fileobj is self._wakeup:
                for number in set(self._wakeup.recv(4096)):
                    self._on_signal(number)
            elif isinstance(key.data, int):
                self._on_link(key.data)
        now = time.monotonic()
        if now >= self._kill_at:
            self._signal_all(signal.SIGKILL)
            self._kill_at = inf
        for slot in [slot for slot, due in self._due.items() if now >= due]:
            del self._due[slot]
            if not self._stopping:
                self._replace(slot)
        if now >= self._start_by and not self._ever_ready and not self._stopping:
            logger.error("cannot start", extra={"data": {"why": "not every process became ready in time"}})
            self._exit = FAILED
            self._stop()

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number in (signal.SIGTERM, signal.SIGINT):
            if self._stopping:
                logger.warning("cutting connections")
                self._signal_workers(CUT)
                self._kill_at = time.monotonic() + GRACE_AFTER_CUT
            else:
                self._stop()
        elif number == signal.SIGHUP:
            logger.warning("SIGHUP does nothing yet: restart to read the configuration again")

    def _on_link(self, pid: int) -> None:
        child = self._children.get(pid)
        if child is None:
            return
        try:
            said = child.link.recv(64)
        except OSError:
            said = b""
        if not said:
            self._selector.unregister(child.link)  # it is about to be reaped
            return
        child.ready = True
        if self._stopping:
            return  # told to stop while it was still starting
        if child.slot is None:
            for slot in range(self._workers):
                self._replace(slot)
        elif not self._ever_ready and self._all_ready():
            self._ever_ready = True
            urls = [_url(bound) for bound in self._bounds[0] if bound.tls]
            logger.info("serving", extra={"data": {"listen": " ".join(urls), "workers": self._workers}})
            if self._announce is not None:
                self._announce(urls)

    def _all_ready(self) -> bool:
        ready = {child.slot for child in self._children.values() if child.ready}
        return ready.issuperset(range(self._workers))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                self._bury(child, os.waitstatus_to_exitcode(status))

    def _bury(self, child: _Child, code: int) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(child.link)
        child.link.close()
        if self._stopping:
            self._after_stop()
        elif not self._ever_ready:
            self._exit = code if code in (FAILED, MISCONFIGURED) else FAILED
            logger.error("cannot start", extra={"data": {"process": _name(child), "exit": code}})
            self._stop()
        elif child.slot is None:
            logger.error(
                "the keeper ended; workers go on with the certificates they have",
                extra={"data": {"exit": code}},
            )
        else:
            self._respawn(child, child.slot, code)

    def _replace(self, slot: int) -> None:
        try:
            self._start_worker(slot)
        except OSError as error:
            delay = self._delay(slot)
            logger.error(
                "a worker cannot be started",
                extra={"data": {"slot": slot, "why": error.strerror, "in_seconds": delay}},
            )

    def _delay(self, slot: int) -> float:
        """Seconds until the next start of this slot's worker, which is planned; longer each time."""
        delay = self._backoff[slot]
        self._backoff[slot] = min(LONGEST_BACKOFF, delay * 2)
        self._due[slot] = time.monotonic() + delay
        return delay

    def _respawn(self, child: _Child, slot: int, code: int) -> None:
        if time.monotonic() - child.started >= STABLE_AFTER:
            self._backoff[slot] = FIRST_BACKOFF
        delay = self._delay(slot)
        logger.error(
            "a worker ended and is replaced",
            extra={"data": {"slot": slot, "pid": child.pid, "exit": code, "in_seconds": delay}},
        )

    # End

    def _stop(self) -> None:
        self._stopping = True
        drain = self._config.timeouts.drain
        if self._ever_ready:
            logger.info("stopping", extra={"data": {"drain_seconds": drain}})
        sockets.close_all(self._bounds)
        self._kill_at = time.monotonic() + drain + GRACE_AFTER_DRAIN
        self._signal_workers(signal.SIGTERM)
        self._after_stop()

    def _after_stop(self) -> None:
        """The keeper ends last: it still answers `botproxy health` while workers drain."""
        if all(child.slot is None for child in self._children.values()):
            self._signal_all(signal.SIGTERM)
            self._kill_at = min(self._kill_at, time.monotonic() + GRACE_AFTER_CUT)

    def _signal_workers(self, number: signal.Signals) -> None:
        for child in self._children.values():
            if child.slot is not None:
                os.kill(child.pid, number)

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self._children:
            os.kill(pid, number)


def run(config: Config, *, announce: Callable[[list[str]], None] | None = None) -> int:
    """Serve `config` until told to stop; blocks and forks. Returns the exit status."""
    return Supervisor(config, announce).run()


def _name(child: _Child) -> str:
    return "keeper" if child.slot is None else f"worker {child.slot}"


def _url(bound: sockets.Bound) -> str:
    host, port = bound.sock.getsockname()[:2]
    if host in ("::", "0.0.0.0"):
        host = "localhost"
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
