"""The one epoll set: who is told, who is not, and numbers that are used again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import uvloop

from botproxy.net.poller import Poller, poller_of


def tell(story: Callable[[Poller], Awaitable[None]]) -> None:
    async def main() -> None:
        await story(poller_of(asyncio.get_running_loop()))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 10))


def test_a_watcher_gives_way_to_the_next_and_cannot_take_it_away() -> None:
    async def story(poller: Poller) -> None:
        near, far = socket.socketpair()
        told = asyncio.Event()

        def earlier() -> None:
            raise AssertionError("it has given way")

        poller.add_reader(near.fileno(), earlier)
        poller.add_reader(near.fileno(), told.set)
        poller.remove_reader(near.fileno(), earlier)
        far.send(b"x")
        await told.wait()
        poller.forget(near.fileno())
        near.close()
        far.close()

    tell(story)


def test_reading_and_writing_are_watched_apart() -> None:
    async def story(poller: Poller) -> None:
        near, far = socket.socketpair()
        readable, writable = asyncio.Event(), asyncio.Event()
        poller.add_reader(near.fileno(), readable.set)
        poller.add_writer(near.fileno(), writable.set)
        await writable.wait()
        assert not readable.is_set()
        poller.remove_writer(near.fileno(), writable.set)
        far.send(b"x")
        await readable.wait()
        poller.remove_reader(near.fileno(), readable.set)
        near.close()
        far.close()

    tell(story)


def test_who_is_hushed_hears_nothing_and_hears_again() -> None:
    async def story(poller: Poller) -> None:
        near, far = socket.socketpair()
        told = asyncio.Event()

        def earlier() -> None:
            raise AssertionError("it is hushed")

        number = near.fileno()
        for comes_meanwhile in (False, True):
            poller.add_reader(number, earlier)
            poller.hush_reader(number, earlier)
            if comes_meanwhile:
                far.send(b"x")
                await asyncio.sleep(0.01)  # once the kernel was told, nothing wakes the loop
            poller.add_reader(number, told.set)
            far.send(b"x")
            await told.wait()
            told.clear()
            near.recv(10)
            poller.remove_reader(number, told.set)
        poller.add_reader(number, earlier)
        poller.hush_reader(number, earlier)
        poller.remove_reader(number, earlier)
        poller.add_reader(number, told.set)  # registered anew: it was taken out for good
        far.close()
        await told.wait()
        poller.forget(number)
        near.close()

    tell(story)


def test_the_writer_of_a_hushed_reader_is_still_told() -> None:
    async def story(poller: Poller) -> None:
        near, far = socket.socketpair()
        writable = asyncio.Event()

        def reader() -> None:
            raise AssertionError("it is hushed")

        poller.add_reader(near.fileno(), reader)
        poller.hush_reader(near.fileno(), reader)
        far.send(b"x")
        poller.add_writer(near.fileno(), writable.set)
        for _ in range(2):  # before and after the kernel is told that nobody reads
            await writable.wait()
            writable.clear()
        poller.forget(near.fileno())
        near.close()
        far.close()

    tell(story)


def test_what_was_meant_for_a_closed_socket_is_not_told_to_the_next_of_its_number() -> None:
    async def story(poller: Poller) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        heirs: list[tuple[socket.socket, socket.socket]] = []
        first = asyncio.Event()

        def wrongly() -> None:
            raise AssertionError("nothing has come for it")

        def replace_the_other(other: socket.socket) -> None:
            if first.is_set():
                return
            first.set()
            number = other.fileno()
            poller.forget(number)
            other.close()
            heirs.append(socket.socketpair())
            assert heirs[0][0].fileno() == number
            poller.add_reader(number, wrongly)

        (one, far_one), (two, far_two) = pairs
        poller.add_reader(one.fileno(), lambda: replace_the_other(two))
        poller.add_reader(two.fileno(), lambda: replace_the_other(one))
        far_one.send(b"x")
        far_two.send(b"x")
        await first.wait()
        for sock in (one, two, far_one, far_two, *heirs[0]):
            if sock.fileno() >= 0:
                poller.forget(sock.fileno())
                sock.close()

    tell(story)


def test_an_error_of_one_watcher_does_not_silence_the_others() -> None:
    async def story(poller: Poller) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        pairs = [socket.socketpair() for _ in range(2)]
        told = asyncio.Event()

        def fail() -> None:
            poller.remove_reader(pairs[0][0].fileno(), fail)
            raise ValueError

        poller.add_reader(pairs[0][0].fileno(), fail)
        poller.add_reader(pairs[1][0].fileno(), told.set)
        for _, far in pairs:
            far.send(b"x")
        await told.wait()
        for near, far in pairs:
            poller.forget(near.fileno())
            near.close()
            far.close()

    tell(story)
