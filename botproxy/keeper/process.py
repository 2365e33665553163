"""The keeper process, from the fork to its end.

Decides what is served from the start (`keeper.boot`), hands it to every worker that the
supervisor announces, and then watches over it: files, workers, dates, the admin
endpoint. It reads private keys, so it talks to nobody but its own listener. Problems go
to the operator log; the exit code says what kind they are.

Before: `server.supervisor`, which forks. After: `keeper.renewal`, `keeper.workers`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from botproxy.config.state import state_dir
from botproxy.control import link, packets
from botproxy.control.packets import PacketError
from botproxy.control.vitals import Pulse
from botproxy.errors import ConfigError, Problem
from botproxy.keeper import admin, vigil
from botproxy.keeper.answers import Answers
from botproxy.keeper.boot import begin
from botproxy.keeper.ledger import Ledger
from botproxy.keeper.lineage import Lineage
from botproxy.keeper.load import Loaded, judge, prove_certificates
from botproxy.keeper.probes import Endpoint
from botproxy.keeper.renewal import Renewals
from botproxy.keeper.rollout import Roller
from botproxy.keeper.store import Store
from botproxy.keeper.superior import Superior
from botproxy.keeper.watch import Watch
from botproxy.keeper.workers import Offer, Workers

if TYPE_CHECKING:
    from botproxy.config.schema import Config

logger = logging.getLogger(__name__)

DONE = 0
MISCONFIGURED = 2


def run(
    config: Config,
    listener: ssl.SSLContext,
    endpoint: Endpoint | None,
    control: socket.socket,
    admin_sock: socket.socket | None,
    slots: int,
    pulse: Pulse,
) -> int:
    """Be the keeper; returns the exit code of the process: 0 when told to stop, 2 for wrong input.

    `listener` is only read. `endpoint` is where clients come in; None when that is no TCP socket.
    `control` is the keeper's end of its link; its end is the supervisor's. Both sockets are taken over.
    `slots`: how many workers there shall be. `pulse`: of this process.
    """
    _be_the_keeper()
    store = Store(state_dir(config) / "certs")
    now = datetime.now(UTC)
    try:
        lineages = begin(config, store, listener, now)
        certificates = [lineage.active.certificate for lineage in lineages]
        prove_certificates(config, certificates, listener)
        offer = _first_offer(lineages)
    except ConfigError as error:
        for problem in error.problems:
            data = {"problem": str(problem), "hint": problem.hint}
            logger.error("the certificates cannot be used", extra={"data": data})
        packets.send(control, link.Failed(link.shown([str(problem) for problem in error.problems])))
        return MISCONFIGURED
    _report(config, lineages, now)

    async def keep() -> None:
        everything = _Keeper(config, listener, endpoint, control, store, lineages, offer)
        await everything.run(admin_sock, slots, pulse)

    asyncio.run(keep())
    return DONE


# Private


def _be_the_keeper() -> None:
    os.umask(0o077)
    # What the supervisor does about its signals is not ours. Ctrl-C and a lost terminal reach the
    # whole group; the supervisor answers them, and stops us when it does not need us any more.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _first_offer(lineages: Sequence[Lineage]) -> Offer:
    try:
        return Offer.of([lineage.active.certificate for lineage in lineages])
    except PacketError as error:
        raise ConfigError([Problem("", "certificates", str(error), "spread the names over more")]) from None


def _report(config: Config, lineages: Sequence[Lineage], now: datetime) -> None:
    """What is to be said about what is served from the start."""
    loaded = [Loaded(each.index, each.entry, each.active.certificate) for each in lineages]
    names = {lineage.path: lineage.name for lineage in lineages}
    for located in judge(config, loaded, now):
        vigil.say_finding(names[located.path], located.file, located.finding)
    for lineage in lineages:
        for finding in lineage.active.remarks:
            vigil.say_finding(lineage.name, lineage.entry.chain, finding)
        vigil.note_stage(lineage, now)
        vigil.say_last_good(lineage)


class _Keeper:
    """Everything that runs on the keeper's loop."""

    def __init__(
        self,
        config: Config,
        listener: ssl.SSLContext,
        endpoint: Endpoint | None,
        control: socket.socket,
        store: Store,
        lineages: Sequence[Lineage],
        offer: Offer,
    ) -> None:
        self._over = asyncio.Event()
        self._superior = Superior(control, self._heard, self._over.set)
        self._lineages = lineages
        self._store = store
        self._workers = Workers(offer)
        roller = Roller(self._workers, endpoint, self._superior.replace)
        self._renewals = Renewals(config, lineages, Ledger(store), roller, listener)
        files = [file for lineage in lineages for file in lineage.files]
        self._watch = Watch(files, config.watch, self._renewals.notice)
        self._serving = asyncio.Event()
        self._retiring = asyncio.Event()

    async def run(self, admin_sock: socket.socket | None, slots: int, pulse: Pulse) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._over.set)
        pulse.start(loop)
        answers = Answers(
            self._lineages,
            self._renewals,
            self._workers,
            self._watch,
            self._store,
            self._superior,
            slots,
            pulse.vitals,
        )
        data = {"certificates": len(self._lineages)}
        logger.info("certificates are loaded", extra={"data": data})
        self._superior.tell(link.Ready())
        try:
            await self._live(admin_sock, answers)
        finally:
            self._superior.close()
            self._workers.close()

    async def _live(self, admin_sock: socket.socket | None, answers: Answers) -> None:
        """Until it is over. Whatever fails here ends the keeper, and the supervisor replaces it."""
        works = [self._renewals.run(), self._watch.poll(), self._watch.listen()]
        works.append(self._answer(admin_sock, answers))
        jobs = [asyncio.ensure_future(work) for work in (*works, self._over.wait())]
        over = jobs[-1]
        try:
            while not over.done():
                await asyncio.wait(
                    [job for job in jobs if not job.done()], return_when=asyncio.FIRST_COMPLETED
                )
                for job in jobs:
                    if job.done() and job is not over:
                        job.result()
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def _answer(self, admin_sock: socket.socket | None, answers: Answers) -> None:
        """Answer the admin socket from when it is this keeper's turn, until it retires."""
        await self._serving.wait()
        service = None if admin_sock is None else await admin.serve(admin_sock, answers)
        try:
            await self._retiring.wait()
        finally:
            self._superior.retire()
            if service is not None:
                await service.close()
        self._over.set()

    def _heard(self, message: link.ToChild) -> None:
        match message:
            case link.Joined(slot=slot, pid=pid, fd=fd):
                self._workers.join(slot, pid, socket.socket(fileno=fd))
            case link.Reconfigured(changed=False, problems=()):
                self._renewals.notice("signal")
            case link.Serve():
                self._serving.set()
            case link.Retire():
                self._retiring.set()
                if not self._serving.is_set():
                    self._over.set()
