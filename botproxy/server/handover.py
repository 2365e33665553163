"""The worker's end of the certificate channel.

Takes what the keeper hands over, loads and proves the whole set beside the one in
use, and flips a single reference when told to. A set that cannot be loaded is
refused with the reason, and what was served before goes on being served.

Before: `keeper.process`. After: `tls.stream`, which asks `select` in every handshake.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable

from botproxy.keeper import channel
from botproxy.tls.context import CertificateSet, Handed, ProbeFailed, Served, prove

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
        """`on_first` is called when there are certificates for the first time."""
        self._sock = sock
        self._listener = listener
        self._strict = strict_sni
        self._loop = loop
        self._on_first = on_first
        self._pid = os.getpid()
        self._arriving: list[Handed] = []
        self._generation = -1
        self._staged: CertificateSet | None = None
        self._current: CertificateSet | None = None

    def start(self) -> None:
        """Ask for certificates and listen to what the keeper says from now on."""
        self._loop.add_reader(self._sock.fileno(), self._on_readable)
        self._say(channel.Hello(self._pid))

    def stop(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._forget_arriving()

    def select(self, sni: str | None) -> Served | None:
        """The certificate for a client that asked for `sni`; None refuses it."""
        return None if self._current is None else self._current.select(sni)

    def serves(self, host: str) -> bool:
        """Whether a certificate covers `host`."""
        return self._current is not None and self._current.serves(host)

    def _on_readable(self) -> None:
        while True:
            try:
                message = channel.receive(self._sock)
            except (EOFError, OSError):
                # The supervisor keeps both ends open, so this is the end of the program.
                self._loop.remove_reader(self._sock.fileno())
                return
            except channel.ChannelError as error:
                logger.error("bad message from the keeper", extra={"data": {"why": str(error)}})
                continue
            if message is None:
                return
            self._take(message)

    def _take(self, message: channel.Message) -> None:
        if message.pid != self._pid:
            if isinstance(message, channel.Prepare):
                os.close(message.certificate.fd)
            return  # meant for a predecessor in this slot
        if isinstance(message, channel.Prepare):
            self._prepare(message)
        elif isinstance(message, channel.Commit):
            self._commit(message.generation)

    def _prepare(self, message: channel.Prepare) -> None:
        if message.index == 0:
            self._forget_arriving()
            self._generation = message.generation
        self._arriving.append(message.certificate)
        if message.generation != self._generation or message.index != len(self._arriving) - 1:
            self._forget_arriving()
            self._say(channel.Refused(self._pid, message.generation, "certificates out of order"))
        elif len(self._arriving) == message.count:
            self._stage()

    def _stage(self) -> None:
        try:
            staged = CertificateSet.load(self._arriving, self._strict)
            prove(staged, self._listener)
        except (ProbeFailed, OSError) as error:  # ssl.SSLError is an OSError
            self._say(channel.Refused(self._pid, self._generation, str(error)))
            return
        finally:
            self._forget_arriving()
        self._staged = staged
        self._say(channel.Prepared(self._pid, self._generation))

    def _commit(self, generation: int) -> None:
        if self._staged is None or generation != self._generation:
            return
        first = self._current is None
        self._current, self._staged = self._staged, None
        fingerprints = {finger for served in self._current.each() for finger in served.fingerprints}
        if first:
            self._on_first()
        self._say(channel.Serving(self._pid, generation, tuple(sorted(fingerprints))))

    def _forget_arriving(self) -> None:
        for handed in self._arriving:
            os.close(handed.fd)
        self._arriving.clear()

    def _say(self, message: channel.Message) -> None:
        try:
            channel.send(self._sock, message)
        except OSError as error:
            logger.error("the keeper cannot be told", extra={"data": {"why": os.strerror(error.errno or 0)}})
