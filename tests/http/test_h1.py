"""A connection beside others: what one client may take of the loop."""

from __future__ import annotations

import asyncio
import socket

import uvloop

from botproxy import errors
from botproxy.config.schema import Limits, Timeouts
from botproxy.http.exchange import Exchange, Settings
from botproxy.http.h1 import ClientConnection, Kept
from botproxy.model import Peer
from botproxy.net.deadlines import Deadlines
from botproxy.net.stream import SocketStream

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Immediate:
    """Answers without waiting for anything, as a redirect does; notes in which turn of the loop."""

    def __init__(self) -> None:
        self.turn = 0
        self.turns: list[int] = []

    async def handle(self, exchange: Exchange, kept: dict[str, Kept]) -> None:
        self.turns.append(self.turn)
        exchange.send_head(404, b"", 0)
        exchange.finish()

    def refuse(self, exchange: Exchange, error: errors.ProxyError) -> None:
        raise AssertionError(error)

    def go_round(self) -> None:
        self.turn += 1
        asyncio.get_running_loop().call_soon(self.go_round)


def test_a_crowd_of_requests_from_one_client_is_not_served_in_one_turn() -> None:
    application, crowd = Immediate(), 50

    async def main() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        loop = asyncio.get_running_loop()
        with far:
            far.send(REQUEST * crowd)
            far.shutdown(socket.SHUT_WR)
            stream = SocketStream(near, loop, Deadlines(loop))
            settings = Settings.of(Limits(), Timeouts())
            peer = Peer("127.0.0.1", 1, 443, False)
            application.go_round()
            await ClientConnection(stream, peer, None, settings, application, loop).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 10))
    assert len(application.turns) == crowd
    assert len(set(application.turns)) == crowd
