"""The accept loop at its end: what got through is taken, and nothing is listened to afterwards."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import uvloop

from botproxy.server.listener import Listener


@pytest.mark.parametrize(
    "factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_who_is_taken_at_the_end_cannot_open_it_again(factory: Any) -> None:
    """The socket lives on in other processes, so a forgotten registration would take their connections."""

    async def story() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        failures: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: failures.append(context))
        mine = socket.create_server(("127.0.0.1", 0))
        mine.setblocking(False)
        others = mine.dup()
        taken: list[socket.socket] = []

        def take(sock: socket.socket, _: Any) -> None:
            taken.append(sock)
            listener.start()  # as the end of a handshake does

        listener = Listener(mine, loop, take, lambda: None)
        clients = [socket.create_connection(mine.getsockname()) for _ in range(3)]
        listener.stop()
        before = len(taken)
        clients.append(socket.create_connection(others.getsockname()))
        listener.start()
        await asyncio.sleep(0.05)  # nothing is awaited: nothing shall happen
        assert failures == []
        for sock in (*clients, *taken, others):
            sock.close()
        return before, len(taken)

    loop = factory()
    try:
        assert loop.run_until_complete(story()) == (3, 3)
    finally:
        loop.close()
