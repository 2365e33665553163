"""The worker's end of the certificate channel.

Takes what the keeper hands over, loads and proves what is new in it beside the set in
use, and flips a single reference when told to. A set that cannot be loaded is
refused with the reason, and what was served before goes on being served. It also knows
from which ports the keeper's probes come, and says when one was met.

Before: `keeper.workers`. After: `tls.stream`, which asks `select` in every handshake.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable

from botproxy.control import channel, packets
from botproxy.control.channel import Commit, Expect, Expecting, Met, Prepare, Prepared, Refused, Serving
from botproxy.tls.context import CertificateSet, Handed, Served
from botproxy.tls.proof import ProofFailed, prove, prove_selection

logger = logging.getLogger(__name__)


class Handover:
    """The certificates of one worker."""

    def __init__(
        self,
        sock: socket.socket,
        listener: ssl.SSLContext,
        strict_sni: bool,
        loop: asyncio.AbstractEventLoop,
        on_first: Callable[[], None],
    ) -> None:
        """`on_first` is called when there are certificates for the first time. `sock` is taken over."""
        self.probes: set[int] = set()
        """Source ports of the keeper's probes that are still to come."""
        self._sock = sock
        self._listener = listener
        self._strict = strict_sni
        self._loop = loop
        self._on_first = on_first
        self._arriving: list[Handed] = []
        self._set = ""
        self._staged: tuple[str, CertificateSet] | None = None
        """The set that was proven last, with its name."""
        self._current: CertificateSet | None = None
        self._unsaid: deque[channel.ToKeeper] = deque()

    def start(self) -> None:
        """Listen to what the keeper says from now on."""
        self._loop.add_reader(self._sock, self._on_readable)

    def stop(self) -> None:
        """Serve what there is, and tell the keeper by the end of the channel that this worker is done."""
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._unsaid.clear()
        self._forget_arriving()

    def select(self, sni: str | None) -> Served | None:
        """The certificate for a client that asked for `sni`; None refuses it."""
        return None if self._current is None else self._current.select(sni)

    def serves(self, host: str) -> bool:
        """Whether a certificate covers `host`."""
        return self._current is not None and self._current.serves(host)

    def met(self, port: int) -> None:
        """The probe from `port` had its handshake."""
        self.probes.discard(port)
        self._say(Met(port))

    def _on_readable(self) -> None:
        while self._sock.fileno() >= 0:
            try:
                message = channel.from_keeper(self._sock)
            except (EOFError, OSError):
                # The supervisor keeps the other end, so this is the end of the program.
                self._loop.remove_reader(self._sock)
                return
            except packets.PacketError as error:
                logger.error("bad message from the keeper", extra={"data": {"why": str(error)}})
                continue
            match message:
                case None:
                    return
                case Prepare():
                    self._prepare(message)
                case Commit():
                    self._commit(message.set)
                case Expect():
                    self.probes.clear()
                    self.probes.update(message.ports)
                    self._say(Expecting(message.ports))

    def _prepare(self, message: Prepare) -> None:
        if message.index == 0:
            self._forget_arriving()
            self._set = message.set
        self._arriving.append(message.certificate)
        if message.set != self._set or message.index != len(self._arriving) - 1:
            self._forget_arriving()
            self._say(Refused(message.set, "certificates out of order"))
        elif len(self._arriving) == message.count:
            self._stage()

    def _stage(self) -> None:
        try:
            # Clients wait meanwhile: what is served already is neither loaded nor proven again.
            known = self._current.each() if self._current is not None else []
            staged = CertificateSet.load(self._arriving, self._strict, known)
            prove(staged, self._listener, proven=known)
            prove_selection(staged)
        except (ProofFailed, OSError) as error:  # ssl.SSLError is an OSError
            self._say(Refused(self._set, str(error)))
            return
        finally:
            self._forget_arriving()
        self._staged = self._set, staged
        self._say(Prepared(self._set))

    def _commit(self, set_: str) -> None:
        if self._staged is None or set_ != self._staged[0]:
            return
        first = self._current is None
        self._current, self._staged = self._staged[1], None
        fingerprints = {finger for served in self._current.each() for finger in served.fingerprints}
        if first:
            self._on_first()
        self._say(Serving(set_, tuple(sorted(fingerprints))))

    def _forget_arriving(self) -> None:
        for handed in self._arriving:
            os.close(handed.fd)
        self._arriving.clear()

    def _say(self, message: channel.ToKeeper) -> None:
        """What a keeper that is being replaced does not take now, the next one hears."""
        if self._sock.fileno() >= 0:
            self._unsaid.append(message)
            self._flush()

    def _flush(self) -> None:
        while self._unsaid:
            try:
                packets.send(self._sock, self._unsaid[0])
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._flush)
                return
            except OSError as error:
                logger.error(
                    "the keeper cannot be told", extra={"data": {"why": os.strerror(error.errno or 0)}}
                )
            self._unsaid.popleft()
        self._loop.remove_writer(self._sock)
