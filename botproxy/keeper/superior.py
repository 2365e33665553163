"""The keeper's side of its link to the supervisor: what it asks for, and waits for.

Workers to be replaced, new ticket keys, the configuration to be read again: only the
supervisor can do these, for only it forks. A question is answered by what began after it
was asked, not by what was under way. What the supervisor says of itself is handed to
whoever was named for it. Nothing is decided here.

Before: `keeper.process`, `keeper.answers`. After: `server.supervisor`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

from botproxy.control import link, packets
from botproxy.control.link import Reconfigured, Rotated

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds in which new processes must serve; the supervisor itself gives up before."""

T = TypeVar("T", Rotated, Reconfigured)


class Superseded(Exception):
    """Another keeper answers from now on: whoever asked shall ask again."""


class Superior:
    """The supervisor, as the keeper knows it."""

    def __init__(
        self, control: socket.socket, heard: Callable[[link.ToChild], None], gone: Callable[[], None]
    ) -> None:
        """`heard` gets what was not asked for; `gone` is called when the supervisor has ended."""
        control.setblocking(False)
        self._control = control
        self._heard = heard
        self._gone = gone
        self._rotations: _Waiting[Rotated] = {}
        self._changes: _Waiting[Reconfigured] = {}
        self._retired = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(control, self._read)

    def tell(self, message: link.ToSupervisor) -> None:
        try:
            packets.send(self._control, message)
        except BlockingIOError:
            logger.error("the supervisor does not listen", extra={"data": {"unsaid": type(message).__name__}})
        except OSError:
            self._gone()

    def replace(self, pid: int, why: str) -> None:
        """End a worker; another one will come in its place."""
        logger.error("a worker is replaced", extra={"data": {"pid": pid, "why": why}})
        self.tell(link.Replace(pid, why))

    async def rotate(self) -> str:
        """Have new ticket keys made; the problem, empty when there was none. Raises Superseded."""
        answer = await self._ask(link.Rotate(), self._rotations)
        return "the new workers did not serve in time" if answer is None else answer.problem

    async def reconfigure(self) -> Reconfigured:
        """Have the configuration read again; what became of it. Raises Superseded."""
        answer = await self._ask(link.Reconfigure(), self._changes)
        return answer or Reconfigured(0.0, False, ("the new processes did not serve in time",))

    def close(self) -> None:
        self._loop.remove_reader(self._control)
        self._control.close()

    async def _ask(self, message: link.ToSupervisor, waiting: _Waiting[T]) -> T | None:
        if self._retired:
            raise Superseded
        done: asyncio.Future[T] = self._loop.create_future()
        waiting[done] = time.monotonic()
        self.tell(message)
        try:
            async with asyncio.timeout(PATIENCE):
                return await done
        except TimeoutError:
            return None
        finally:
            del waiting[done]

    def _read(self) -> None:
        try:
            message = link.from_supervisor(self._control)
        except packets.PacketError as error:
            logger.error("bad message from the supervisor", extra={"data": {"why": str(error)}})
            return
        except (EOFError, OSError):
            self._gone()
            return
        match message:
            case None:
                pass
            case Rotated():
                _answer(self._rotations, message)
            case Reconfigured():
                if not _answer(self._changes, message):
                    self._heard(message)
            case link.Retire():
                self.retire()
                self._heard(message)
            case _:
                self._heard(message)

    def retire(self) -> None:
        """Whoever waits for an answer, or asks from now on, is told to ask another keeper."""
        self._retired = True
        unanswered: list[asyncio.Future[Any]] = [*self._rotations, *self._changes]
        for done in unanswered:
            if not done.done():
                done.set_exception(Superseded())


_Waiting = dict[asyncio.Future[T], float]
"""Who waits for an answer, and since when, in monotonic seconds."""


def _answer(waiting: _Waiting[T], answer: T) -> bool:
    """Give `answer` to those who asked before it was begun; whether there was anybody."""
    due = [done for done, asked in waiting.items() if asked <= answer.begun and not done.done()]
    for done in due:
        done.set_result(answer)
    return bool(due)
