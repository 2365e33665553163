"""The keeper's side of its conversations with all workers.

Knows who is there, what each has prepared and serves, and says the one rule that brings
everybody to the same set: whoever comes is offered the current set, and whoever has
prepared the current set is told to serve it. A worker leaves when its channel ends. When
which set is to be the current one is `keeper.rollout`'s decision.

Before: `keeper.process`, to which the supervisor hands channels. After: `server.handover`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

from cryptography.hazmat.primitives.serialization import Encoding

from botproxy.control import channel, packets
from botproxy.control.channel import Commit, Expect, Expecting, Met, Prepare, Prepared, Refused, Serving
from botproxy.tls.certificates import Certificate
from botproxy.tls.context import Handed, hand

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offer:
    """A set of certificates as workers get it."""

    set: str
    """Made of what is in it, so equal sets have equal names, also after a keeper was replaced."""
    handed: tuple[Handed, ...]

    @classmethod
    def of(cls, certificates: Sequence[Certificate]) -> Offer:
        """The set of `certificates`, in the order of the configuration; `close` ends it.

        Raises PacketError when one has too many names to be handed over.
        """
        hashed = hashlib.sha256()
        for certificate in certificates:
            for sent in (certificate.leaf, *certificate.intermediates):
                hashed.update(sent.public_bytes(Encoding.DER))
        offer = cls(hashed.hexdigest()[:16], tuple(hand(certificate) for certificate in certificates))
        try:
            for handed in offer.handed:
                packets.encode(Prepare(offer.set, 0, 1, handed))
        except packets.PacketError:
            offer.close()
            raise
        return offer

    @property
    def fingerprints(self) -> frozenset[str]:
        return frozenset(certificate.fingerprint for certificate in self.handed)

    def close(self) -> None:
        for certificate in self.handed:
            os.close(certificate.fd)


class Workers:
    """Everybody who serves; at most one current set."""

    def __init__(self, first: Offer) -> None:
        """`first`: what everybody shall serve."""
        self.current = first
        self.met: dict[int, int] = {}
        """The worker that met the probe from a port."""
        self._present: dict[int, Worker] = {}
        self._waiting: set[asyncio.Event] = set()

    @property
    def present(self) -> list[Worker]:
        """By slot."""
        return sorted(self._present.values(), key=lambda worker: worker.slot)

    @property
    def all_serve(self) -> bool:
        """Whether there are workers, and each serves the current set."""
        present = self._present.values()
        return bool(present) and all(worker.serving == self.current.set for worker in present)

    def serves_all(self, slots: int) -> bool:
        """Whether in each of `slots` slots a worker serves the current set, whoever is to follow it there."""
        serving = {worker.slot for worker in self._present.values() if worker.serving == self.current.set}
        return serving >= set(range(slots))

    def join(self, slot: int, pid: int, sock: socket.socket) -> None:
        """A worker is there; `sock` is the keeper's end of its channel, closed at its end."""
        worker = Worker(slot, pid, sock, self._heard, self._left)
        self._present[pid] = worker
        worker.prepare(self.current)
        self._changed()

    def offer(self, offer: Offer) -> None:
        """Have everybody prepare `offer`, beside what is served."""
        for worker in self._present.values():
            worker.prepare(offer)

    def withdraw(self, offer: Offer) -> None:
        """End an offer that did not become current, or no longer is."""
        for worker in self._present.values():
            worker.unsend(offer.set)
        offer.close()

    def make_current(self, offer: Offer) -> None:
        """From now on `offer` is what everybody shall serve, also those who come later."""
        self.current = offer
        for worker in self._present.values():
            if worker.prepared == offer.set:
                worker.send(Commit(offer.set))
            elif worker.serving != offer.set:
                worker.prepare(offer)

    def expect(self, ports: tuple[int, ...]) -> None:
        """Tell everybody from which ports probes will come; forgets who met earlier ones."""
        self.met.clear()
        for worker in self._present.values():
            worker.send(Expect(ports))

    async def until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Wait until `done`, asked whenever something was heard; False after `seconds`."""
        heard = asyncio.Event()
        self._waiting.add(heard)
        try:
            async with asyncio.timeout(seconds):
                while not done():
                    heard.clear()
                    await heard.wait()
        except TimeoutError:
            return done()
        finally:
            self._waiting.discard(heard)
        return True

    def close(self) -> None:
        for worker in self._present.values():
            worker.close()
        self._present.clear()
        self.current.close()

    def _heard(self, worker: Worker, message: channel.ToKeeper) -> None:
        match message:
            case Prepared():
                worker.prepared = message.set
                if message.set == self.current.set:
                    worker.send(Commit(message.set))
            case Refused():
                worker.refused = message
                data = worker.data | {"set": message.set, "why": message.reason[:500]}
                logger.error("a worker refuses the certificates", extra={"data": data})
            case Serving():
                self._note_serving(worker, message)
            case Expecting():
                worker.expecting = message.ports
            case Met():
                self.met[message.port] = worker.pid
            case _:
                assert_never(message)
        self._changed()

    def _note_serving(self, worker: Worker, message: Serving) -> None:
        ours = self.current.fingerprints
        if message.set == self.current.set and not ours.issuperset(message.fingerprints):
            logger.error("a worker serves other certificates", extra={"data": worker.data})
            return
        worker.serving, worker.fingerprints = message.set, message.fingerprints
        logger.info("a worker serves the certificates", extra={"data": worker.data | {"set": message.set}})
        if message.set != self.current.set:
            worker.prepare(self.current)  # it was slow: what it took over was given up meanwhile

    def _left(self, worker: Worker) -> None:
        if self._present.get(worker.pid) is worker:
            del self._present[worker.pid]
        self._changed()

    def _changed(self) -> None:
        for heard in self._waiting:
            heard.set()


class Worker:
    """One worker, as the keeper knows it."""

    def __init__(
        self,
        slot: int,
        pid: int,
        sock: socket.socket,
        heard: Callable[[Worker, channel.ToKeeper], None],
        left: Callable[[Worker], None],
    ) -> None:
        sock.setblocking(False)
        self.slot = slot
        self.pid = pid
        # What it said last
        self.prepared: str | None = None
        self.serving: str | None = None
        self.fingerprints: tuple[str, ...] = ()
        self.refused: Refused | None = None
        self.expecting: tuple[int, ...] = ()
        # The channel
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._heard = heard
        self._left = left
        self._outgoing: deque[channel.ToWorker] = deque()
        self._loop.add_reader(sock, self._read)

    @property
    def data(self) -> dict[str, object]:
        """For the log."""
        return {"slot": self.slot, "pid": self.pid}

    def prepare(self, offer: Offer) -> None:
        self.prepared = self.refused = None
        for index, certificate in enumerate(offer.handed):
            self.send(Prepare(offer.set, index, len(offer.handed), certificate))

    def has_answered(self, set_: str) -> bool:
        """Whether it took or refused the set."""
        return self.prepared == set_ or self.has_refused(set_)

    def has_refused(self, set_: str) -> bool:
        return self.refused is not None and self.refused.set == set_

    def send(self, message: channel.ToWorker) -> None:
        """Queue `message`; it leaves as soon as the socket takes it."""
        self._outgoing.append(message)
        self._flush()

    def unsend(self, set_: str) -> None:
        """Forget what is queued of a set; its descriptors are about to be closed."""
        kept = [m for m in self._outgoing if not isinstance(m, Prepare) or m.set != set_]
        self._outgoing = deque(kept)

    def close(self) -> None:
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()

    def _flush(self) -> None:
        while self._outgoing:
            try:
                packets.send(self._sock, self._outgoing[0])
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._flush)
                return
            except OSError:
                self._outgoing.clear()  # it is gone, and `_read` will say so
                break
            self._outgoing.popleft()
        self._loop.remove_writer(self._sock)

    def _read(self) -> None:
        try:
            message = channel.from_worker(self._sock)
        except packets.PacketError as error:
            logger.error("bad message from a worker", extra={"data": self.data | {"why": str(error)}})
            return
        except (EOFError, OSError):
            self.close()
            self._outgoing.clear()
            self._left(self)
            return
        if message is not None:
            self._heard(self, message)
