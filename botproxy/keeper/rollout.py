"""Which worker serves which generation of certificates, and how a generation gets there.

One slot per worker, which outlives its workers. A worker says hello and is offered the
current generation; when it has loaded and proven all of it, it is told to serve it.
Two steps, so that many workers can be brought to the second only when all took the
first. Nothing is read from disk here, and no certificate is judged.

Before: `keeper.process`. After: the worker, over `keeper.channel`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import assert_never

from botproxy.keeper import channel
from botproxy.keeper.channel import ChannelError, Commit, Hello, Message, Prepare, Prepared, Refused, Serving
from botproxy.tls.context import Handed

logger = logging.getLogger(__name__)


class Rollout:
    """The current generation and the workers that get it."""

    def __init__(
        self, generation: int, certificates: Sequence[Handed], channels: Sequence[socket.socket]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.generation = generation
        self.slots = [Slot(index, sock, loop, self._heard) for index, sock in enumerate(channels)]
        self._certificates = tuple(certificates)

    @property
    def is_complete(self) -> bool:
        """Whether every worker serves the current generation."""
        return all(slot.serving == self.generation for slot in self.slots)

    def close(self) -> None:
        for slot in self.slots:
            slot.close()

    def _heard(self, slot: Slot, message: Message) -> None:
        if isinstance(message, Hello):
            slot.greet(message.pid)
            self._offer(slot, message.pid)
            return
        if message.pid != slot.pid:
            return  # a worker that was replaced and had not stopped talking
        match message:
            case Prepared(pid=pid, generation=generation):
                if generation == self.generation:
                    slot.send(Commit(pid, generation))
            case Refused():
                data = _data(slot, message) | {"generation": message.generation, "why": message.reason[:500]}
                logger.error("a worker refuses the certificates", extra={"data": data})
            case Serving():
                self._note_serving(slot, message)
            case Prepare() | Commit():
                logger.error("a worker talks like the keeper", extra={"data": _data(slot, message)})
            case _:
                assert_never(message)

    def _offer(self, slot: Slot, pid: int) -> None:
        count = len(self._certificates)
        for index, certificate in enumerate(self._certificates):
            slot.send(Prepare(pid, self.generation, index, count, certificate))

    def _note_serving(self, slot: Slot, message: Serving) -> None:
        ours = {certificate.fingerprint for certificate in self._certificates}
        if message.generation == self.generation and not ours.issuperset(message.fingerprints):
            logger.error("a worker serves other certificates", extra={"data": _data(slot, message)})
            return
        slot.serving = message.generation
        data = _data(slot, message) | {"generation": message.generation}
        logger.info("a worker serves the certificates", extra={"data": data})


class Slot:
    """The keeper's end of the channel of one worker slot; takes over the socket."""

    def __init__(
        self,
        index: int,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        heard: Callable[[Slot, Message], None],
    ) -> None:
        sock.setblocking(False)
        self.index = index
        # Of the worker that is there
        self.pid: int | None = None
        self.serving: int | None = None
        """Generation, once the worker said that it serves it."""
        # Of the channel
        self._sock = sock
        self._loop = loop
        self._heard = heard
        self._outgoing: deque[Message] = deque()
        loop.add_reader(sock, self._read)

    def greet(self, pid: int) -> None:
        """A worker came; whatever was meant for one before it is dropped."""
        self.pid = pid
        self.serving = None
        self._outgoing.clear()

    def send(self, message: Message) -> None:
        """Queue `message`; it leaves as soon as the socket takes it."""
        self._outgoing.append(message)
        self._flush()

    def close(self) -> None:
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()

    def _flush(self) -> None:
        while self._outgoing:
            try:
                channel.send(self._sock, self._outgoing[0])
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._flush)
                return
            except OSError as error:
                data = {"slot": self.index, "why": error.strerror}
                logger.error("the channel to a worker is broken", extra={"data": data})
                self._outgoing.clear()
                break
            self._outgoing.popleft()
        self._loop.remove_writer(self._sock)

    def _read(self) -> None:
        try:
            message = channel.receive(self._sock)
        except ChannelError as error:
            data = {"slot": self.index, "why": str(error)}
            logger.error("bad message from a worker", extra={"data": data})
            return
        except (EOFError, OSError):
            # The supervisor keeps the other end open for the next worker; it is gone or going.
            self._loop.remove_reader(self._sock)
            return
        if message is not None:
            self._heard(self, message)


def _data(slot: Slot, message: Message) -> dict[str, object]:
    return {"slot": slot.index, "pid": message.pid}
