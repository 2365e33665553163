"""Multi-step attempts to make botproxy and a bot disagree about where a request or response ends."""

from __future__ import annotations

import select
import socket
import ssl

from tests.e2e.conftest import Start
from tests.harness import Bot, Wire, get


def send_at_once(wire: Wire, *pieces: bytes) -> None:
    """Each piece a TLS record of its own, all in one segment."""
    wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    for piece in pieces:
        wire.send(piece)
    wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)


def is_reset(wire: Wire, within: float = 0.3) -> bool:
    """Whether the other side resets the connection rather than waiting for us to end it too."""
    poll = select.poll()
    poll.register(wire.sock, 0)  # errors are reported all the same
    return bool(poll.poll(within * 1000))


def test_a_refusal_reaches_a_client_that_goes_on_sending(start: Start, trust: ssl.SSLContext) -> None:
    """Unread bytes must not turn the end of the connection into a reset that overtakes the answer."""
    with Bot() as bot, start(bot.url).connect(trust) as client:
        assert client.request(get()).status == 200
        send_at_once(client, b"\r\n\r\n\r\n", *[b"x"] * 50)
        assert client.read_message().status == 400
        assert client.read_to_end() == (b"", True)
        assert not is_reset(client)


def test_an_answer_reaches_a_client_that_pipelines_behind_its_last_request(
    start: Start, trust: ssl.SSLContext
) -> None:
    with Bot() as bot, start(bot.url).connect(trust) as client:
        send_at_once(client, get("/last", "Connection: close"), get("/behind"), *[b"x"] * 50)
        assert client.read_message().status == 200
        assert client.read_to_end() == (b"", True)
        assert not is_reset(client)
        assert [request.target for request in bot.requests] == ["/last"]
