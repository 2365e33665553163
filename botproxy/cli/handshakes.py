"""TLS handshakes from a few threads, one after the other in each, and the account of every one.

Measures from the first byte of the TCP connection to the client's end of the handshake. Then the client
ends the connection in order and waits for the server to do so as well, so that a server cannot fall behind
unseen. A resumed handshake counts only if it was resumed. Certificates are judged once, in `first`, and not
in what is measured. Knows nothing about whom it may be pointed at: that is `cli.target`.
"""

from __future__ import annotations

import math
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from botproxy.cli.target import Target

Kind = Literal["full", "resumed"]
VERSIONS = {"TLSv1.3": ssl.TLSVersion.TLSv1_3, "TLSv1.2": ssl.TLSVersion.TLSv1_2}
PATIENCE = 5.0
"""Seconds for one connection."""
ERRORS_ENOUGH = 50
"""After so many a measure has failed, and ends."""
TICKET_PATIENCE = 0.5
"""Seconds that a server has to hand out a session after the handshake."""


@dataclass(frozen=True, slots=True)
class First:
    """What one handshake showed."""

    protocol: str
    cipher: str
    certificate: bytes
    """The server's own, DER."""
    distrust: str | None
    """Why this machine does not trust it; None: it does."""
    session: ssl.SSLSession | None
    """To be resumed, if the server offers that."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a measure ends, whichever comes first."""

    seconds: float
    count: int
    clients: int
    rate: float | None = None
    """Handshakes a second at most; None: as many as there are."""


@dataclass(slots=True)
class Tally:
    """What became of all handshakes of a kind."""

    latencies: list[float] = field(default_factory=list)
    """Seconds of each that succeeded."""
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    """From the first to the last."""
    cpu: float = 0.0
    """Seconds of processor time that this client took."""

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds if self.seconds else 0.0


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def first(target: Target, version: str) -> First:
    """One handshake in `version`. Raises OSError, of which ssl.SSLError is a kind."""
    with _connect(target, context(version), None) as tls:
        protocol, cipher, der = tls.version(), tls.cipher(), tls.getpeercert(binary_form=True)
        assert protocol is not None
        assert cipher is not None
        assert der is not None
        return First(protocol, cipher[0], der, _distrust(target, version), _session(tls))


def context(version: str) -> ssl.SSLContext:
    """A client that speaks `version` alone, and takes any certificate."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.minimum_version = made.maximum_version = VERSIONS[version]
    return made


def in_words(error: OSError) -> str:
    """What went wrong, without the places of library code."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    if isinstance(error, TimeoutError):
        return f"no end within {PATIENCE:g} s"
    return (error.strerror or str(error)).lower()


def measure(
    target: Target, version: str, kind: Kind, limits: Limits, progress: Callable[[float], None]
) -> Tally:
    """Handshakes until `limits` are reached; `progress` is told which share of them is used up."""
    crowd = _Crowd(target, version, kind, limits)
    crowd.run(progress)
    return crowd.tally


# Private


class _Crowd:
    """Threads that share one tally."""

    def __init__(self, target: Target, version: str, kind: Kind, limits: Limits) -> None:
        self.tally = Tally()
        self._target = target
        self._context = context(version)
        self._resume = kind == "resumed"
        self._limits = limits
        self._lock = threading.Lock()
        self._begun = 0
        self._threads = [threading.Thread(target=self._come, daemon=True) for _ in range(limits.clients)]

    def run(self, progress: Callable[[float], None]) -> None:
        self._session = self._ticket() if self._resume else None
        cpu = time.process_time()
        self._started = time.monotonic()
        self._ends = self._started + self._limits.seconds
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.1)
                spent = (time.monotonic() - self._started) / self._limits.seconds
                progress(min(1.0, max(spent, self._begun / self._limits.count)))
        self.tally.seconds = time.monotonic() - self._started
        self.tally.cpu = time.process_time() - cpu

    def _ticket(self) -> ssl.SSLSession | None:
        with _connect(self._target, self._context, None) as tls:
            return _session(tls)

    def _come(self) -> None:
        while (due := self._next()) is not None:
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                latency = self._shake()
            except OSError as error:
                with self._lock:
                    self.tally.errors[in_words(error)] += 1
            else:
                with self._lock:
                    self.tally.latencies.append(latency)

    def _next(self) -> float | None:
        """When the next handshake is due; None when there shall be none."""
        with self._lock:
            rate, now = self._limits.rate, time.monotonic()
            due = now if rate is None else max(now, self._started + self._begun / rate)
            if self._begun >= self._limits.count or due >= self._ends:
                return None
            if self.tally.errors.total() >= ERRORS_ENOUGH:
                return None
            self._begun += 1
            return due

    def _shake(self) -> float:
        began = time.monotonic()
        with _connect(self._target, self._context, self._session) as tls:
            latency = time.monotonic() - began
            if self._resume and not tls.session_reused:
                raise ConnectionError("not resumed")
            _end(tls)
        return latency


def _connect(target: Target, context: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLSocket:
    sock = socket.socket(target.family, socket.SOCK_STREAM)
    try:
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect(target.address)
        return context.wrap_socket(sock, server_hostname=target.host, session=session)
    except BaseException:
        sock.close()
        raise


def _end(tls: ssl.SSLSocket) -> None:
    """In order on our side; how the server ends it is its affair, but it must."""
    try:
        tls.unwrap()
    except TimeoutError:
        raise
    except OSError:
        pass  # it closed without a word, as many do


def _session(tls: ssl.SSLSocket) -> ssl.SSLSession | None:
    """What the server gave to resume with. In TLS 1.3 it comes behind the handshake, and only to a reader."""
    if tls.version() == "TLSv1.3":
        tls.settimeout(TICKET_PATIENCE)
        try:
            tls.recv(1)
        except OSError:
            pass  # it waits for a request, or has had enough; either way the tickets were read
    session = tls.session
    return session if session is not None and (session.has_ticket or session.id) else None


def _distrust(target: Target, version: str) -> str | None:
    strict = ssl.create_default_context()
    strict.minimum_version = strict.maximum_version = VERSIONS[version]
    try:
        with _connect(target, strict, None) as tls:
            _end(tls)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    return None
