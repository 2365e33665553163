"""Waiting for a bot that is away."""

from __future__ import annotations

import asyncio
import socket

import pytest

from botproxy import errors
from botproxy.net.deadlines import Deadlines
from botproxy.net.stream import SocketStream
from botproxy.upstream.hold import RETRY_EVERY, Hold


class Door:
    """A dialer that is refused until it is opened."""

    def __init__(self) -> None:
        self.is_open = False
        self.attempts = 0

    async def dial(self) -> SocketStream:
        self.attempts += 1
        if not self.is_open:
            raise errors.ConnectFailed("closed")
        near, far = socket.socketpair()
        far.close()
        near.setblocking(False)
        loop = asyncio.get_running_loop()
        return SocketStream(near, loop, Deadlines(loop))


def test_an_open_door_is_passed_at_once() -> None:
    async def story() -> None:
        door = Door()
        door.is_open = True
        (await Hold(door, 10, 10).connect()).shut()
        assert door.attempts == 1

    asyncio.run(story())


def test_everybody_who_waits_passes_when_the_door_opens() -> None:
    async def story() -> None:
        door = Door()
        hold = Hold(door, 10, 100)
        waiting = [asyncio.ensure_future(hold.connect()) for _ in range(50)]
        while hold.waiting < 50:
            await asyncio.sleep(0)
        door.is_open = True
        for stream in await asyncio.wait_for(asyncio.gather(*waiting), 2):
            stream.shut()
        assert hold.waiting == 0

    asyncio.run(story())


def test_a_crowd_does_not_knock_more_often_than_one() -> None:
    async def story() -> None:
        door = Door()
        hold = Hold(door, RETRY_EVERY * 5, 100)
        results = await asyncio.gather(*(hold.connect() for _ in range(50)), return_exceptions=True)
        assert all(isinstance(result, errors.ConnectFailed) for result in results)
        assert door.attempts <= 50 + 6  # one each on arrival, then one for all

    asyncio.run(story())


def test_patience_ends_with_an_error_that_says_to_come_back() -> None:
    async def story() -> None:
        with pytest.raises(errors.ConnectFailed) as caught:
            await Hold(Door(), 0.15, 10).connect()
        assert caught.value.status == 503

    asyncio.run(story())


def test_without_patience_nobody_waits() -> None:
    async def story() -> None:
        door = Door()
        with pytest.raises(errors.ConnectFailed):
            await Hold(door, 0, 10).connect()
        assert door.attempts == 1

    asyncio.run(story())


def test_the_room_has_a_capacity() -> None:
    async def story() -> None:
        hold = Hold(Door(), 10, 1)
        first = asyncio.ensure_future(hold.connect())
        while not hold.waiting:
            await asyncio.sleep(0)
        with pytest.raises(errors.WaitingRoomFull):
            await hold.connect()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert hold.waiting == 0

    asyncio.run(story())


def test_whoever_gives_up_lets_the_next_one_try() -> None:
    async def story() -> None:
        door = Door()
        hold = Hold(door, 10, 10)
        first, second = (asyncio.ensure_future(hold.connect()) for _ in range(2))
        while hold.waiting < 2:
            await asyncio.sleep(0)
        first.cancel()
        door.is_open = True
        (await asyncio.wait_for(second, 2)).shut()

    asyncio.run(story())
