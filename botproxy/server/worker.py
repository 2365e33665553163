"""One worker process: builds the parts, serves, drains, ends.

Everything a request needs is put together here and nowhere else. The worker begins
to accept when the keeper has handed it certificates. It ends in order at SIGTERM and when
the supervisor is gone; told to retire it does the same, and takes as long as its
connections do, or as it is granted.

Before: `server.supervisor`. After: `server.reception`, `proxy`, `server.plain`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import uvloop

from botproxy.control import link, packets
from botproxy.control.vitals import BEAT, Pulse
from botproxy.model import Record
from botproxy.net.deadlines import Deadlines
from botproxy.observe import access, logs
from botproxy.observe.writer import LineWriter
from botproxy.policy.headers import TowardClient
from botproxy.policy.routes import RouteTable
from botproxy.proxy import Proxy
from botproxy.server.census import Census, SharedLimiter
from botproxy.server.handover import Handover
from botproxy.server.plain import Plain
from botproxy.server.reception import Reception
from botproxy.server.sockets import Bound
from botproxy.tls import stream as tls

if TYPE_CHECKING:
    from botproxy.config.schema import Config

logger = logging.getLogger(__name__)

ASK_AGAIN = 15.0
"""Seconds until a worker that is too large asks again for another in its place."""
LAST_REQUEST = 5.0
"""Seconds in which an idle connection may bring its last request, when another worker took over: nobody is
in a hurry, and a client that sends just now need not try again."""
LAST_LINES = 1.0
"""Seconds granted to the log at the end."""


class Worker:
    """The life of a worker."""

    def __init__(
        self,
        config: Config,
        slot: int,
        seat: int,
        bounds: Sequence[Bound],
        context: ssl.SSLContext,
        channel: socket.socket,
        control: socket.socket,
        census: Census,
        limiter: SharedLimiter,
        verifications: Mapping[str, ssl.SSLContext],
        pulse: Pulse,
    ) -> None:
        """`seat`: whose connections are counted apart in `census`. `control`: this end of the link."""
        self._config = config
        self._logs_access = config.log.access != "off"
        self._slot = slot
        self._seat = seat
        self._bounds = bounds
        self._context = context
        self._channel = channel
        self._control = control
        self._census = census
        self._limiter = limiter
        self._verifications = verifications
        self._pulse = pulse
        self._patience = 0.0
        """Seconds that idle connections get for a last request once this worker drains."""
        self._full_since: float | None = None
        """Since when `limits.memory` is reached, and a new worker asked for."""

    def run(self) -> int:
        """Returns the exit status."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self._main())

    async def _main(self) -> int:
        loop = self._loop = asyncio.get_running_loop()
        self._drain, self._cut = asyncio.Event(), asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, self._on_stop)
        self._control.setblocking(False)
        loop.add_reader(self._control, self._on_link)
        errors, self._lines = LineWriter(sys.stderr.fileno()), LineWriter(sys.stdout.fileno())
        logs.setup(self._config.log.level, writer=errors, process=f"worker {self._slot}")
        proxy = self._build()
        self._pulse.start(loop, self._look_at_memory)
        self._handover.start()
        try:
            await self._drain.wait()
            self._handover.stop()
            ended = await self._reception.drain(self._cut, self._patience)
            if ended:
                logger.warning("connections cut at the end of the drain", extra={"data": {"count": ended}})
        finally:
            proxy.close()
            self._lines.close(LAST_LINES)
            logging.shutdown()  # tells of lines held back; the interpreter's own end never comes here
            errors.close(LAST_LINES)
        return 0

    def _build(self) -> Proxy:
        config, loop = self._config, self._loop
        deadlines = Deadlines(loop)
        proxy = Proxy(config, self._verifications, loop, deadlines, self._limiter, self._log)
        self._handover = Handover(self._channel, self._context, config.tls.strict_sni, loop, self._begin)
        tls.install(self._context, self._handover.select)
        https_port = next(bound.port for bound in self._bounds if bound.tls)
        plain = Plain(
            https_port,
            config.acme_webroot,
            self._serves,
            TowardClient(config),
            self._log,
        )
        self._routes = RouteTable(config)
        self._reception = Reception(
            config,
            self._seat,
            loop,
            deadlines,
            self._census,
            self._context,
            self._handover,
            (proxy, plain),
            self._log,
            self._log_handshake,
        )
        return proxy

    def _begin(self) -> None:
        if self._drain.is_set():
            return
        self._reception.listen(self._bounds)
        packets.send(self._control, link.Ready())

    def _serves(self, host: str) -> bool:
        """Host names for which port 80 redirects: those of routes, else those of certificates."""
        return self._routes.serves(host) if self._routes.names_hosts else self._handover.serves(host)

    # Signals

    def _on_stop(self) -> None:
        """In order, but within the time that a stop grants."""
        self._loop.call_later(self._config.timeouts.drain, self._cut.set)
        self._drain.set()

    def _on_link(self) -> None:
        try:
            message = link.from_supervisor(self._control)
        except packets.PacketError as error:
            logger.error("bad message from the supervisor", extra={"data": {"why": str(error)}})
        except (EOFError, OSError):
            self._loop.remove_reader(self._control)
            logger.error("the supervisor is gone; ending")
            self._on_stop()
        else:
            if isinstance(message, link.Retire):
                self._patience = LAST_REQUEST
                if message.limited:
                    self._patience = min(LAST_REQUEST, message.milliseconds / 2000)
                    self._loop.call_later(message.milliseconds / 1000, self._cut.set)
                self._retire()

    def _retire(self) -> None:
        self._drain.set()
        self._reception.stop()
        packets.send(self._control, link.Retired())

    def _look_at_memory(self, memory: int) -> None:
        """Too large: what can be spared goes, nobody new comes in, and another worker is asked for."""
        limit = self._config.limits.memory
        if limit is None or self._drain.is_set():
            return
        if memory < limit:
            if self._full_since is not None:
                self._full_since = None
                self._reception.resume()
            return
        self._reception.shed(BEAT)
        now = time.monotonic()
        if self._full_since is not None and now - self._full_since < ASK_AGAIN:
            return
        self._full_since = now
        self._reception.pause()
        data = {"mebibytes": memory // 2**20, "limit": limit // 2**20}
        logger.warning("limits.memory is reached, a new worker is asked for", extra={"data": data})
        packets.send(self._control, link.Recycle())

    # Logs

    def _log(self, record: Record) -> None:
        if self._logs_access:
            self._lines.write(access.line(record, time.time()))

    def _log_handshake(self, client: str, failure: tls.HandshakeFailed, seconds: float) -> None:
        if self._logs_access:
            reason = failure.alert or failure.code
            self._lines.write(access.handshake_line(client, failure.sni, reason, seconds, time.time()))
