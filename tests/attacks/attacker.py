"""One attacker, in a process of its own so that its effort can be measured.

`Attacker` starts it and gives the word. Run by it: `python -m tests.attacks.attacker CASE
PORT`. For each line on stdin, a JSON object of `Order`, it attacks and answers with one of
`Effort`. The processor time counts from the order to the answer: neither Python's start nor
the preparation of bytes is the attacker's merit.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Self

from tests.attacks.cases import BY_NAME, Burst, Case, Held
from tests.attacks.wires import Dialer, bytes_on_the_wire, pump

BURST_SECONDS = 10.0
"""After this long a burst gives up."""
_TICK = 0.02
_AT_ONCE = 20
"""Connections made in a row before the others get their turn."""


@dataclass(frozen=True, slots=True)
class Order:
    seconds: float
    """The end, if nothing else ends it before."""
    connections: int
    """Held at once, or bursts altogether."""
    per_second: float
    """New connections, or bursts; 0: as fast as it goes."""
    again: bool
    """Whether a connection that ended is replaced."""


@dataclass(slots=True)
class Effort:
    """What an attack took, and what became of it."""

    cpu: float = 0.0
    sent: int = 0
    """Bytes on the wire."""
    connections: int = 0
    """That were tried."""
    refused: int = 0
    """That the proxy ended before the handshake was done."""
    ended: int = 0
    """That the proxy ended later."""
    most: int = 0
    """Held at once."""
    answers: dict[str, int] = field(default_factory=dict)
    """To bursts, by status; `0`: none."""


class Attacker:
    """Gives the word."""

    def __init__(self, case: Case, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks.attacker", case.name, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._hear()  # it is ready

    def start(self, order: Order) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()

    def wait(self) -> Effort:
        return Effort(**json.loads(self._hear()))

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the attacker ended"
        return str(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()


# The process


class _Crowd:
    """The connections of a `Held` attack."""

    def __init__(self, attack: Held, port: int) -> None:
        self._attack = attack
        self._dialer = Dialer(port, attack.depth)
        self._socks: dict[int, socket.socket] = {}
        self._poll = select.poll()
        self._position = 0
        self._effort = Effort()

    def run(self, order: Order) -> Effort:
        self._effort = effort = Effort()
        began = time.monotonic()
        next_drip = began + self._attack.interval
        while (now := time.monotonic()) < began + order.seconds:
            wanted = order.connections - (len(self._socks) if order.again else effort.connections)
            if wanted > 0:
                due = int((now - began) * order.per_second) + 1 - effort.connections
                self._grow(min(due, wanted))
            elif not self._socks:
                break
            if now >= next_drip:
                next_drip = now + self._attack.interval
                self._drip()
            for fd, _ in self._poll.poll(_TICK * 1000):
                self._drop(fd, by_peer=True)
        for fd in list(self._socks):
            self._drop(fd, by_peer=False)
        return effort

    def _grow(self, count: int) -> None:
        for _ in range(min(count, _AT_ONCE)):
            self._effort.connections += 1
            try:
                sock = self._dialer.dial()
            except OSError:
                self._effort.refused += 1
                continue
            self._socks[sock.fileno()] = sock
            self._poll.register(sock.fileno(), select.POLLRDHUP)
            self._effort.most = max(self._effort.most, len(self._socks))
            try:
                if self._attack.begin:
                    sock.sendall(self._attack.begin)
                if self._attack.half_closed:
                    _send_end(sock)
            except OSError:
                pass  # it ended; the poll tells

    def _drip(self) -> None:
        attack = self._attack
        piece = attack.drip[self._position : self._position + attack.piece]
        if attack.drip:
            self._position = (self._position + attack.piece) % len(attack.drip)
        if not piece and not attack.reads:
            return
        for sock in self._socks.values():
            try:
                if piece:
                    sock.sendall(piece)
                if attack.reads:
                    sock.setblocking(False)
                    sock.recv(attack.reads)
            except OSError:
                pass  # nothing came yet; or it ended, and the poll tells

    def _drop(self, fd: int, *, by_peer: bool) -> None:
        self._poll.unregister(fd)
        sock = self._socks.pop(fd)
        self._effort.sent += bytes_on_the_wire(sock)
        self._effort.ended += by_peer
        sock.close()


def _send_end(sock: socket.socket) -> None:
    """close_notify and the end of the TCP stream; the other direction stays."""
    assert isinstance(sock, ssl.SSLSocket)
    sock.setblocking(False)
    try:
        sock.unwrap()
    except ssl.SSLWantReadError:
        pass  # ours is sent
    socket.socket.shutdown(sock, socket.SHUT_WR)


def _burst(attack: Burst, dialer: Dialer, order: Order) -> Effort:
    effort = Effort(most=1)
    answers: Counter[str] = Counter()
    began = time.monotonic()
    while (now := time.monotonic()) < began + order.seconds and effort.connections < order.connections:
        if order.per_second and (ahead := began + effort.connections / order.per_second - now) > 0:
            time.sleep(min(ahead, began + order.seconds - now))
            continue
        effort.connections += 1
        try:
            sock = dialer.dial()
        except OSError:
            effort.refused += 1
            continue
        first = pump(sock, attack.data, time.monotonic() + BURST_SECONDS, leave=attack.leave)
        effort.ended += not attack.leave
        answers[first[9:12].decode("latin-1") or "0"] += 1
        effort.sent += bytes_on_the_wire(sock)
        sock.close()
    effort.answers = dict(answers)
    return effort


def _main(case: Case, port: int) -> None:
    attack = case.attack
    crowd = _Crowd(attack, port) if isinstance(attack, Held) else None
    dialer = Dialer(port, "tls")
    print("ready", flush=True)
    for line in sys.stdin:
        order = Order(**json.loads(line))
        began = time.process_time()
        if isinstance(attack, Burst):
            effort = _burst(attack, dialer, order)
        else:
            assert crowd is not None
            effort = crowd.run(order)
        effort.cpu = time.process_time() - began
        print(json.dumps(asdict(effort)), flush=True)


if __name__ == "__main__":
    _main(BY_NAME[sys.argv[1]], int(sys.argv[2]))
