"""TLS handshakes from a few threads, one after the other in each, and the account of every one.

Measures from the first byte of the TCP connection to the client's end of the handshake. Then the client
ends the connection in order and waits for the server to do so as well, so that a server cannot fall behind
unseen; `GRACE` is how much longer than the run that may take. In TLS 1.3 the client has finished before the
server has judged it, so a refusal is looked for behind the handshake, too. A resumed handshake counts only if
it was resumed. Certificates are judged once, in `first`, and not in what is measured. Whatever goes wrong is
counted; an interrupt ends a measure with what was counted until then. Knows nothing about whom it may be
pointed at: that is `cli.target`.
"""

from __future__ import annotations

import math
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Self, TypeVar

from botproxy.cli.target import Target

T = TypeVar("T")
Kind = Literal["full", "resumed"]
VERSIONS = {"TLSv1.3": ssl.TLSVersion.TLSv1_3, "TLSv1.2": ssl.TLSVersion.TLSv1_2}
PATIENCE = 5.0
"""Seconds for each step of one connection: to be accepted, to shake hands, to end."""
GRACE = 1.0
"""Seconds behind the end of a measure in which the last connections may end."""
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
    interrupted: bool = False
    """Whether the user ended it before its time."""

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds if self.seconds else 0.0


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def first(target: Target, version: str) -> First:
    """One handshake in `version`. Raises OSError, of which ssl.SSLError is a kind."""
    with _Connection(target, context(version), None) as made:
        protocol, cipher, der = made.tls.version(), made.tls.cipher(), made.tls.getpeercert(True)
        assert protocol is not None
        assert cipher is not None
        assert der is not None
        session = made.session()
    return First(protocol, cipher[0], der, _distrust(target, version), session)


def context(version: str) -> ssl.SSLContext:
    """A client that speaks `version` alone, and takes any certificate."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.minimum_version = made.maximum_version = VERSIONS[version]
    return made


class BehindHandshakeError(ConnectionError):
    """What the server did to a connection whose handshake the client had finished."""


def in_words(error: OSError) -> str:
    """What went wrong, without the places of library code."""
    if (alert := _alert(error)) is not None:
        return f"the server refuses the connection: {alert}"
    match error:
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return "the server closed the connection"
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER" | "HTTP_REQUEST"):
            return "the server does not speak TLS"
        case ssl.SSLError(reason=str(reason)):
            return reason.lower().replace("_", " ")
        case TimeoutError():
            return f"no answer within {PATIENCE:g} s"
    return re.sub(r" \(_ssl\.c:\d+\)$", "", error.strerror or str(error)).lower()


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
        self._session: ssl.SSLSession | None = None
        self._begun = 0
        self._threads = [threading.Thread(target=self._come, daemon=True) for _ in range(limits.clients)]

    def run(self, progress: Callable[[float], None]) -> None:
        self._start()
        try:
            if not self._resume or self._has_session():
                self._start()
                self._work(progress)
        except KeyboardInterrupt:
            with self._lock:
                self.tally.interrupted = True
        else:
            progress(1.0)
        self.tally.seconds = time.monotonic() - self._started
        self.tally.cpu = time.process_time() - self._cpu

    def _start(self) -> None:
        """The clocks; the session is not a part of what is measured."""
        self._cpu = time.process_time()
        self._started = time.monotonic()
        self._ends = self._started + self._limits.seconds

    def _has_session(self) -> bool:
        try:
            with _Connection(self._target, self._context, None) as made:
                self._session = made.session()
            if self._session is None:
                raise ConnectionError("no session to resume")
        except OSError as error:
            self._failed(error)
            return False
        return True

    def _work(self, progress: Callable[[float], None]) -> None:
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.1)
                spent = (time.monotonic() - self._started) / self._limits.seconds
                progress(min(1.0, max(spent, self._begun / self._limits.count)))

    def _come(self) -> None:
        while (due := self._next()) is not None:
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                latency = self._shake()
            except OSError as error:
                self._failed(error)
            else:
                with self._lock:
                    if not self.tally.interrupted:
                        self.tally.latencies.append(latency)

    def _failed(self, error: OSError) -> None:
        with self._lock:
            if not self.tally.interrupted:
                self.tally.errors[in_words(error)] += 1

    def _next(self) -> float | None:
        """When the next handshake is due; None when there shall be none."""
        with self._lock:
            rate, now = self._limits.rate, time.monotonic()
            due = now if rate is None else max(now, self._started + self._begun / rate)
            if self._begun >= self._limits.count or due >= self._ends:
                return None
            if self.tally.interrupted or self.tally.errors.total() >= ERRORS_ENOUGH:
                return None
            self._begun += 1
            return due

    def _shake(self) -> float:
        began = time.monotonic()
        with _Connection(self._target, self._context, self._session) as made:
            latency = time.monotonic() - began
            if self._resume and not made.tls.session_reused:
                raise ConnectionError("not resumed")
            made.end(min(PATIENCE, max(0.0, self._ends - time.monotonic()) + GRACE))
        return latency


class _Connection:
    """A finished handshake. Carries its bytes itself: the end of an `SSLSocket` swallows a refusal."""

    def __init__(self, target: Target, context: ssl.SSLContext, session: ssl.SSLSession | None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=target.host, session=session
        )
        self._lost: ConnectionError | None = None
        self._sock = socket.socket(target.family, socket.SOCK_STREAM)
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sock.settimeout(PATIENCE)
            self._sock.connect(target.address)
            self._carry(self.tls.do_handshake, time.monotonic() + PATIENCE)
        except BaseException:
            self._sock.close()
            raise

    def session(self) -> ssl.SSLSession | None:
        """What the server gave to resume with. It comes behind a handshake in TLS 1.3, to a reader alone."""
        if self.tls.version() == "TLSv1.3":
            try:
                self._carry(lambda: self.tls.read(1), time.monotonic() + TICKET_PATIENCE)
            except OSError as error:
                _raise_refusal(error)  # else it waits for a request, or has had enough; the tickets were read
        session = self.tls.session
        return session if session is not None and (session.has_ticket or session.id) else None

    def end(self, patience: float) -> None:
        """In order on our side; how the server ends it is its affair, but it must, and not by a refusal."""
        deadline = time.monotonic() + patience
        try:
            # Nothing is left to read when our goodbye is written: reading shows an alert, `unwrap` does not.
            for step in (self._read_all, self.tls.unwrap):
                with suppress(ssl.SSLWantReadError):
                    step()
            self._carry(self._read_all, deadline)
        except TimeoutError:
            raise BehindHandshakeError("the server did not end the connection") from None
        except OSError as error:
            _raise_refusal(error)  # else it closed without a word, as many do

    def _read_all(self) -> None:
        while self.tls.read(65536):
            pass

    def _carry(self, step: Callable[[], T], deadline: float) -> T:
        """What `step` gives once it got the bytes that it wants."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                pass
            finally:
                self._send()
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            self._sock.settimeout(left)
            if data := self._sock.recv(65536):
                self._incoming.write(data)
            elif self._lost is not None:
                raise self._lost
            else:
                self._incoming.write_eof()

    def _send(self) -> None:
        if not self._outgoing.pending:
            return
        try:
            self._sock.sendall(self._outgoing.read())
        except ConnectionError as error:
            self._lost = error  # what the server said last is still to be read

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()


def _raise_refusal(error: OSError) -> None:
    if _alert(error) is not None:
        raise BehindHandshakeError(in_words(error)) from None


def _alert(error: OSError) -> str | None:
    """What the server's alert says, if `error` is one; OpenSSL marks them by these prefixes."""
    if not isinstance(error, ssl.SSLError) or not error.reason:
        return None
    found = re.match(r"(?:SSLV3_ALERT|TLSV1|TLSV13)_(?:ALERT_)?(.+)", error.reason)
    return found[1].lower().replace("_", " ") if found else None


def _distrust(target: Target, version: str) -> str | None:
    strict = ssl.create_default_context()
    strict.minimum_version = strict.maximum_version = VERSIONS[version]
    try:
        with _Connection(target, strict, None):
            pass
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except OSError as error:
        return f"it was not shown again: {in_words(error)}"
    return None
