"""Workers that a test plays: the far end of a keeper's channel and, where one is asked for, a TLS listener.

`Played` blocks and is scripted message by message; `work` has a thread do what a real worker
does, up to the message at which it shall fall silent. What a fake asserts fails the test
that made it.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self

from botproxy.config.schema import Tls
from botproxy.control import channel, packets
from botproxy.control.channel import Commit, Expect, Expecting, Met, Prepare, Prepared, Refused, Serving
from botproxy.keeper.probes import NO_PEER_KNOWN, Endpoint
from botproxy.keeper.workers import Offer, Workers
from botproxy.tls.context import CertificateSet, Handed, Served, listener_context
from botproxy.tls.proof import prove
from tests.certs import Issued

PATIENCE = 20.0
"""Seconds until a test that waits for something gives up."""


def offer(*issued: Issued) -> Offer:
    return Offer.of([each.certificate for each in issued])


def kept_memfds() -> int:
    """Certificates in memory that this process holds open."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue  # that of the listing itself
    return sum("botproxy-cert" in link for link in links)


class Played:
    """One worker, and both ends of its channel as the supervisor keeps them."""

    def __init__(self, pid: int, slot: int = 0) -> None:
        self.pid = pid
        self.slot = slot
        self.keepers_end, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(PATIENCE)
        self.current: CertificateSet | None = None
        self.sets: list[str] = []
        """Every set that was served, in order."""
        self.heard: list[channel.ToWorker] = []
        self.expected: tuple[int, ...] = ()
        self.staged: tuple[str, CertificateSet] | None = None
        self._arriving: list[Handed] = []
        self.listener: socket.socket | None = None
        self._changed = threading.Condition()
        self._threads = ThreadPoolExecutor()
        self._jobs: list[Future[None]] = []

    @property
    def serving(self) -> str | None:
        return self.sets[-1] if self.sets else None

    @property
    def fingerprints(self) -> tuple[str, ...]:
        assert self.current is not None
        return tuple(sorted({each for served in self.current.each() for each in served.fingerprints}))

    def join(self, workers: Workers) -> Self:
        """Be introduced to a keeper in this process, which gets a copy of its end."""
        workers.join(self.slot, self.pid, self.keepers_end.dup())
        return self

    # One step after the other

    def hear(self) -> channel.ToWorker:
        """The next message. Raises EOFError."""
        message = channel.from_keeper(self.sock)
        assert message is not None
        with self._changed:
            self.heard.append(message)
            self._changed.notify_all()
        return message

    def has_mail(self) -> bool:
        """Whether something was said that was not heard yet."""
        return bool(select.select([self.sock], [], [], 0)[0])

    def say(self, message: channel.ToKeeper) -> None:
        packets.send(self.sock, message)

    def take(self) -> str:
        """Hear a whole set, load and prove it; its name."""
        while True:
            message = self.hear()
            assert isinstance(message, Prepare), message
            if self._arrived(message):
                return message.set

    def prepare(self) -> str:
        taken = self.take()
        self.say(Prepared(taken))
        return taken

    def commit(self) -> None:
        """Be told to serve what was taken last, and do it."""
        assert self.staged is not None
        assert self.hear() == Commit(self.staged[0])
        self.flip()

    def flip(self) -> None:
        assert self.staged is not None
        name, self.current = self.staged
        with self._changed:
            self.sets.append(name)
            self._changed.notify_all()
        self.say(Serving(name, self.fingerprints))

    def enrol(self) -> str:
        """Everything up to serving; the set's name."""
        taken = self.prepare()
        self.commit()
        return taken

    def _arrived(self, message: Prepare) -> bool:
        """Whether the set is whole with this."""
        if message.index == 0:
            self._forget_arriving()
        self._arriving.append(message.certificate)
        assert message.index == len(self._arriving) - 1
        if len(self._arriving) < message.count:
            return False
        loaded = CertificateSet.load(self._arriving, strict=False)
        prove(loaded, listener_context(Tls()))
        self._forget_arriving()
        self.staged = message.set, loaded
        return True

    def _forget_arriving(self) -> None:
        for handed in self._arriving:
            os.close(handed.fd)
        self._arriving.clear()

    # By itself

    def work(self, *, mute_at: type | None = None, refuse: str | None = None) -> Self:
        """Do what is said, in a thread; but say nothing from the first `mute_at` on, or refuse what comes."""
        self._start(lambda: self._work(mute_at, refuse))
        return self

    def _work(self, mute_at: type | None, refuse: str | None) -> None:
        while True:
            try:
                message = self.hear()
                if mute_at is not None and isinstance(message, mute_at):
                    if isinstance(message, Prepare):
                        os.close(message.certificate.fd)
                    return
                self._do(message, refuse)
            except (EOFError, OSError):
                return

    def _do(self, message: channel.ToWorker, refuse: str | None) -> None:
        match message:
            case Prepare():
                if self._arrived(message):
                    self.say(Prepared(message.set) if refuse is None else Refused(message.set, refuse))
            case Commit():
                # Like a worker: only what was prepared last can be served.
                if self.staged is not None and self.staged[0] == message.set:
                    self.flip()
            case Expect():
                self.expected = message.ports
                self.say(Expecting(message.ports))

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Until `what` holds, asked whenever this worker has heard something or serves something else."""
        ends = time.monotonic() + PATIENCE
        with self._changed:
            while not what():
                left = ends - time.monotonic()
                assert left > 0, f"it did not happen; served were {self.sets}, heard was {self.heard}"
                self._changed.wait(left)

    def _start(self, body: Callable[[], None]) -> None:
        self._jobs.append(self._threads.submit(body))

    # The listener

    def listen(self, sock: socket.socket, *, shows: Served | None = None, **how: bool) -> Self:
        """Accept on `sock` in a thread, which shows what is served, or `shows` whatever is served.

        `how`: `proxy_protocol`, whether a PROXY header is due; `hangs_up`, whether that is all it does.
        """
        context = listener_context(Tls())

        def choose(asked: ssl.SSLObject | ssl.SSLSocket, sni: str | None, _: ssl.SSLContext) -> int | None:
            served = shows or (self.current.select(sni) if self.current else None)
            if served is None:
                return int(ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)
            asked.context = served.context
            return None

        context.sni_callback = choose
        self.listener = sock
        self._start(lambda: self._accept(sock, context, **how))
        return self

    def _accept(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        proxy_protocol: bool = False,
        hangs_up: bool = False,
    ) -> None:
        while True:
            try:
                accepted, (_, port) = sock.accept()
            except OSError:
                return  # closed
            with accepted:
                accepted.settimeout(PATIENCE)
                try:
                    if proxy_protocol:
                        assert accepted.recv(len(NO_PEER_KNOWN), socket.MSG_WAITALL) == NO_PEER_KNOWN
                    if not hangs_up:
                        context.wrap_socket(accepted, server_side=True).close()
                except OSError:
                    pass  # a client that leaves, or takes nothing we have
            if port in self.expected:
                try:
                    self.say(Met(port))
                except OSError:
                    return  # we have ended

    # The end

    def leave(self) -> None:
        """End as a process does: all its sockets are closed."""
        for sock in (self.sock, self.listener):
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)  # wakes its thread
                except OSError:
                    pass  # it was closed, or never connected
        self._threads.shutdown()
        self._forget_arriving()
        self.sock.close()
        self.keepers_end.close()
        for job in self._jobs:
            job.result()


class Crew:
    """The workers of one test, and the port on which they listen."""

    def __init__(self) -> None:
        self.members: list[Played] = []
        self._socks: list[socket.socket] = []
        self.port = 0

    def hire(self, pid: int, slot: int = 0) -> Played:
        worker = Played(pid, slot)
        self.members.append(worker)
        return worker

    def socket(self) -> socket.socket:
        """Another listening socket on the port of all."""
        sock = socket.socket()
        self._socks.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", self.port))
        sock.listen(128)
        self.port = int(sock.getsockname()[1])
        return sock

    def endpoint(self, *, proxy_protocol: bool = False, shared: bool = False) -> Endpoint:
        return Endpoint(socket.AF_INET, ("127.0.0.1", self.port), proxy_protocol, shared)

    def close(self) -> None:
        try:
            for worker in self.members:
                worker.leave()
        finally:
            for sock in self._socks:
                sock.close()


@contextmanager
def crew() -> Iterator[Crew]:
    """Everybody leaves at the end."""
    everybody = Crew()
    try:
        yield everybody
    finally:
        everybody.close()


Story = Callable[[Workers, Crew], Awaitable[None]]


def tell(story: Story, *first: Issued) -> None:
    """`story` with a keeper's workers that shall serve `first`; no error is lost, and nothing stays open."""
    before = kept_memfds()
    unhandled: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        with crew() as everybody:
            workers = Workers(offer(*first))
            try:
                await asyncio.wait_for(story(workers, everybody), 2 * PATIENCE)
            finally:
                workers.close()

    asyncio.run(main())
    assert unhandled == []
    assert kept_memfds() == before
