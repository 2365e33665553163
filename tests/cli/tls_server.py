"""TLS servers on a free port of this machine that do as a test says, from the first connection on."""

from __future__ import annotations

import itertools
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import certs
from tests.harness import Behaviour, Bot
from tests.wire import Wire

LOOK = 4
"""Connections before the first that is measured, of a server with TLS 1.3 alone and a certificate that is not
trusted: whether the address answers, what TLS 1.3 shows, whether to trust it, and what TLS 1.2 shows."""


def context(directory: Path, issued: certs.Issued, *, tickets: int = 0) -> ssl.SSLContext:
    """A server that speaks TLS 1.3 alone, and hands out so many tickets for each handshake."""
    pair = issued.write(directory)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pair.chain, pair.key)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.num_tickets = tickets
    return made


@contextmanager
def server(made: ssl.SSLContext, behaviour: Behaviour | None = None) -> Iterator[str]:
    """Its URL; `behaviour` comes after the handshake."""
    with Bot(behaviour, context=made) as bot:
        yield f"https://localhost:{bot.port}"


@contextmanager
def turning(good: Behaviour, bad: Behaviour, after: int) -> Iterator[Bot]:
    """What every connection but the first `after` ones meets is `bad`; both begin before the handshake."""
    number = itertools.count()
    with Bot(lambda wire: (good if next(number) < after else bad)(wire)) as bot:
        yield bot


def shakes(made: ssl.SSLContext, then: Callable[[Wire], object] = Wire.read_all) -> Behaviour:
    """A handshake, and what comes after it: by default it waits for the client's end."""

    def behave(wire: Wire) -> None:
        try:
            wire.sock = made.wrap_socket(wire.sock, server_side=True)
        except OSError:
            return  # it only looked, or did not like what it saw
        then(wire)

    return behave


def greets(made: ssl.SSLContext) -> Behaviour:
    """A handshake whose last bytes are in one segment with what the server says then; and goes."""

    def behave(wire: Wire) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = made.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                wire.send(outgoing.read())
            if not (data := wire.read_some()):
                return  # it only looked
            incoming.write(data)
        tls.write(b"220 ready\r\n")
        wire.send(outgoing.read())

    return behave


def closes(wire: Wire) -> None:
    """Takes what comes first, and goes."""
    wire.read_some()


def resets(wire: Wire) -> None:
    """Does not even look."""
    wire.reset()


def hangs(wire: Wire) -> None:
    """Takes everything and says nothing, until the client has had enough."""
    wire.read_all()


def never_ends(wire: Wire) -> None:
    """Hears the client's goodbye and does not answer it, until the client is gone."""
    wire.read_all()
    while socket.socket.recv(wire.sock, 65536):
        pass
