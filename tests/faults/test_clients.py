"""Rows of the fault table about clients: they leave, stall, read little, or are cut off by the network."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Callable

from tests.e2e.conftest import Start
from tests.e2e.test_upstream import leaving
from tests.faults.apart import Namespaces, apart
from tests.faults.conftest import Checked
from tests.harness import Bot, Proxied, descriptors_of, forget_peak, peak_of, rss_of
from tests.wire import OK, PATIENCE, Wire, get, post

ALLOWED_GROWTH = 8 * 1024**2
BIG = 100 * 1000**2
SMALL = 1000
"""Bytes read, written and buffered at once."""


@leaving
def test_row_06(
    front_of: Start, checked: Checked, trust: ssl.SSLContext, leave: Callable[[Wire], None]
) -> None:
    """The client ends its side, or everything, when its request is sent."""
    with Bot() as bot:

        def behave(wire: Wire) -> None:
            bot.saw(wire.read_message())
            wire.read_to_end()

        bot.behave(behave)
        front = front_of(bot.url)
        with checked(front) as checker:
            since = len(front.access.lines)
            with front.connect(trust) as client:
                client.send(get("/left"))
                bot.wait_for(lambda: bool(bot.requests))
                leave(client)
                bot.wait_for(lambda: bot.open == 0)
            assert front.wait_record(since, path="/left")["error"] == "client_gone"
            checker.wait_for(25)


def test_row_09(front_of: Start, checked: Checked, trust: ssl.SSLContext) -> None:
    """The bot hangs, and its clients give up: nothing of them is left."""
    with Bot() as bot:

        def behave(wire: Wire) -> None:
            bot.saw(wire.read_message())
            wire.read_to_end()

        bot.behave(behave)
        front = front_of(bot.url)
        (worker,) = front.workers()
        before = descriptors_of(worker)
        with checked(front) as checker:
            for number in range(1, 6):
                clients = [front.connect(trust) for _ in range(10)]
                for client in clients:
                    client.send(get("/hangs"))
                bot.wait_for(lambda number=number: len(bot.requests) == 10 * number)  # type: ignore[misc]
                for client in clients:
                    client.close()
                bot.wait_for(lambda: bot.open == 0)
            checker.wait_for(25)
        bot.wait_for(lambda: descriptors_of(worker) <= before)
        assert len(front.records(lambda record: record["status"] == 499)) == 50


def test_row_10(front_of: Start, checked: Checked, trust: ssl.SSLContext) -> None:
    """Clients ask for a lot and read nothing of it."""
    ended = threading.Semaphore(0)

    def behave(wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            while True:
                wire.send(bytes(65536))
        finally:
            ended.release()

    with Bot(behave) as bot:
        front = front_of(bot.url, timeouts={"write": "1s"})
        (worker,) = front.workers()
        with checked(front) as checker:
            before = rss_of(worker)
            forget_peak(worker)
            clients = [front.connect(trust) for _ in range(10)]
            for client in clients:
                client.send(get("/much"))
            for _ in clients:
                assert ended.acquire(timeout=PATIENCE)
            assert front.wait_record(path="/much")["error"] == "slow_reader"
            assert peak_of(worker) - before <= ALLOWED_GROWTH
            for client in clients:
                assert not client.read_to_end()[1]
                client.close()
            checker.wait_for(25)


def test_row_11(front_of: Start, checked: Checked, trust: ssl.SSLContext) -> None:
    """100 MB each way between ends that take and give 1 kB at once."""
    seen: list[bytes] = []
    data = os.urandom(SMALL * 100)
    whole = hashlib.sha256(data * (BIG // len(data))).digest()

    def take(wire: Wire) -> bytes:
        digest = hashlib.sha256()
        left = BIG
        while left and (piece := wire.buffer or wire.sock.recv(SMALL)):
            wire.buffer = b""
            left -= len(piece)
            digest.update(piece)
        return digest.digest()

    def give(wire: Wire) -> None:
        for _ in range(BIG // len(data)):
            for at in range(0, len(data), SMALL):
                wire.send(data[at : at + SMALL])

    def behave(wire: Wire) -> None:
        shrink(wire.sock)
        while head := wire.read_until(b"\r\n\r\n"):
            if head.startswith(b"POST"):
                seen.append(take(wire))
                wire.send(OK)
            else:
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BIG)
                give(wire)

    with Bot(behave) as bot:
        front = front_of(bot.url, limits={"body": "1GiB"})
        with checked(front), front.connect(trust) as client:
            shrink(client.sock)
            client.send(post("/up", f"Content-Length: {BIG}"))
            give(client)
            assert client.read_message().status == 200
            client.send(get("/down"))
            client.read_until(b"\r\n\r\n")
            assert take(client) == whole
        assert seen == [whole]


def shrink(sock: socket.socket) -> None:
    """The least of kernel buffers that still moves 100 MB in seconds."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, 64 * SMALL)


def partition(
    front_of: Start,
    checked: Checked,
    trust: ssl.SSLContext,
    behave: Callable[[Wire], None],
    then: Callable[[Proxied, Bot], None],
) -> None:
    """A client behind a network that suddenly loses everything, in a network of our own."""

    def body(namespaces: Namespaces) -> None:
        with Bot(behave) as bot, Bot() as healthy:
            front = front_of(bot.url, beside=healthy, timeouts={"write": "1s"})
            with checked(front) as checker, front.connect(trust) as client:
                client.send(get("/lost"))
                client.read_until(b"\r\n\r\n")
                namespaces.drop(client.sock.getsockname()[1])
                then(front, bot)
                checker.wait_for(25)

    apart(body, network=True)


def test_row_34(front_of: Start, checked: Checked, trust: ssl.SSLContext) -> None:
    """The network to a client is lost while it downloads."""

    def behave(wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            wire.send(bytes(65536))

    def then(front: Proxied, bot: Bot) -> None:
        bot.wait_for(lambda: bot.open == 0)
        assert front.wait_record(path="/lost")["error"] == "slow_reader"

    partition(front_of, checked, trust, behave, then)


def test_row_34_small_pieces(front_of: Start, checked: Checked, trust: ssl.SSLContext) -> None:
    """The same while it gets an event now and then, which the kernel takes for a long time."""
    over = threading.Event()

    def behave(wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while not over.wait(0.05):
            wire.send(b"data: 1\n\n")

    def then(front: Proxied, bot: Bot) -> None:
        try:
            over.wait(4.0)  # four times `timeouts.write`
            assert bot.open == 0, "its slot is still taken"
        finally:
            over.set()

    partition(front_of, checked, trust, behave, then)
