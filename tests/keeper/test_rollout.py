"""Workers get the current generation in two steps; who serves what is known."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from botproxy.keeper import channel
from botproxy.keeper.channel import Commit, Hello, Message, Prepare, Prepared, Refused, Serving
from botproxy.keeper.rollout import Rollout
from botproxy.tls.context import Handed, sealed_memfd

PATIENCE = 10.0


@pytest.fixture
def handed() -> Iterator[list[Handed]]:
    fds = [sealed_memfd(b"one"), sealed_memfd(b"two")]
    yield [Handed((f"{fd}.test",), "ecdsa", f"{number}" * 64, True, fd) for number, fd in enumerate(fds)]
    for fd in fds:
        os.close(fd)


@contextmanager
def slots(count: int) -> Iterator[tuple[list[socket.socket], list[socket.socket]]]:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)]
    for _, theirs in pairs:
        theirs.setblocking(False)
    try:
        yield [ours for ours, _ in pairs], [theirs for _, theirs in pairs]
    finally:
        for pair in pairs:
            for sock in pair:
                sock.close()


async def heard(sock: socket.socket) -> Message:
    """The next message at the worker's end; a certificate's file is closed at once."""
    loop = asyncio.get_running_loop()
    while True:
        message = channel.receive(sock)
        if message is not None:
            if isinstance(message, Prepare):
                os.close(message.certificate.fd)
            return message
        readable = asyncio.Event()
        loop.add_reader(sock, readable.set)
        try:
            await asyncio.wait_for(readable.wait(), PATIENCE)
        finally:
            loop.remove_reader(sock)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, PATIENCE))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


async def enrol(worker: socket.socket, pid: int, count: int) -> None:
    """A worker's whole way to serving."""
    channel.send(worker, Hello(pid))
    for index in range(count):
        message = await heard(worker)
        assert isinstance(message, Prepare)
        assert (message.pid, message.generation, message.index, message.count) == (pid, 5, index, count)
    channel.send(worker, Prepared(pid, 5))
    assert await heard(worker) == Commit(pid, 5)
    channel.send(worker, Serving(pid, 5, ("0" * 64,)))


def test_all_workers_are_brought_to_the_generation(handed: list[Handed]):
    async def story() -> None:
        with slots(2) as (ours, workers):
            rollout = Rollout(5, handed, ours)
            assert not rollout.is_complete
            await enrol(workers[0], 70, 2)
            await until(lambda: rollout.slots[0].serving == 5)
            assert not rollout.is_complete
            await enrol(workers[1], 71, 2)
            await until(lambda: rollout.is_complete)
            assert [slot.pid for slot in rollout.slots] == [70, 71]
            rollout.close()

    run(story())


def test_nothing_is_committed_before_the_worker_is_prepared(handed: list[Handed]):
    async def story() -> None:
        with slots(1) as (ours, [worker]):
            rollout = Rollout(5, handed, ours)
            channel.send(worker, Hello(70))
            assert [type(await heard(worker)) for _ in handed] == [Prepare, Prepare]
            channel.send(worker, Prepared(70, 4))
            channel.send(worker, Hello(70))  # answered after the message before it
            assert [type(await heard(worker)) for _ in handed] == [Prepare, Prepare]
            rollout.close()

    run(story())


def test_a_worker_in_the_place_of_another_gets_everything_again(handed: list[Handed]):
    async def story() -> None:
        with slots(1) as (ours, [worker]):
            rollout = Rollout(5, handed, ours)
            await enrol(worker, 70, 2)
            await until(lambda: rollout.is_complete)
            channel.send(worker, Hello(71))
            await until(lambda: rollout.slots[0].pid == 71)
            assert not rollout.is_complete
            for _ in handed:
                await heard(worker)
            await enrol(worker, 71, 2)
            await until(lambda: rollout.is_complete)
            rollout.close()

    run(story())


def test_a_replaced_worker_that_still_talks_changes_nothing(handed: list[Handed]):
    async def story() -> None:
        with slots(1) as (ours, [worker]):
            rollout = Rollout(5, handed, ours)
            channel.send(worker, Hello(71))
            channel.send(worker, Prepared(70, 5))
            channel.send(worker, Serving(70, 5, ()))
            channel.send(worker, Refused(71, 5, "no"))
            channel.send(worker, Hello(72))
            await until(lambda: rollout.slots[0].pid == 72)
            assert rollout.slots[0].serving is None
            assert [type(await heard(worker)) for _ in range(4)] == [Prepare] * 4
            rollout.close()

    run(story())


def test_a_worker_that_says_it_serves_something_else_is_not_counted(
    handed: list[Handed], caplog: pytest.LogCaptureFixture
):
    async def story() -> None:
        with slots(1) as (ours, [worker]):
            rollout = Rollout(5, handed, ours)
            channel.send(worker, Hello(70))
            channel.send(worker, Serving(70, 5, ("f" * 64,)))
            await until(lambda: "other certificates" in caplog.text)
            assert not rollout.is_complete
            rollout.close()

    run(story())


def test_a_refusal_is_an_error_in_the_log(handed: list[Handed], caplog: pytest.LogCaptureFixture):
    async def story() -> None:
        with slots(1) as (ours, [worker]):
            rollout = Rollout(5, handed, ours)
            channel.send(worker, Hello(70))
            channel.send(worker, Refused(70, 5, "x" * 1000))
            await until(lambda: bool(caplog.records))
            rollout.close()

    run(story())
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert record.__dict__["data"] == {"slot": 0, "pid": 70, "generation": 5, "why": "x" * 500}


def test_what_is_no_message_is_logged_and_the_next_one_is_heard(
    handed: list[Handed], caplog: pytest.LogCaptureFixture
):
    async def story() -> None:
        with slots(1) as (ours, [worker]):
            rollout = Rollout(5, handed, ours)
            worker.send(b"nonsense")
            await enrol(worker, 70, 2)
            await until(lambda: rollout.is_complete)
            rollout.close()

    run(story())
    assert "bad message from a worker" in caplog.text


def test_a_worker_that_does_not_read_delays_nobody_and_gets_all_when_it_does():
    async def story() -> None:
        fd = sealed_memfd(b"pem")
        names = tuple(f"{number:04}.{'x' * 50}" for number in range(1000))
        many = [Handed(names, "ecdsa", "0" * 64, True, fd)] * 20  # 1.2 MB: more than a socket takes
        with slots(2) as (ours, [slow, quick]):
            rollout = Rollout(5, many, ours)
            channel.send(slow, Hello(70))
            await until(lambda: rollout.slots[0].pid == 70)
            await enrol(quick, 71, 20)
            await until(lambda: rollout.slots[1].serving == 5)
            indexes = []
            for _ in many:
                message = await heard(slow)
                assert isinstance(message, Prepare)
                indexes.append(message.index)
            assert indexes == list(range(20))
            rollout.close()
        os.close(fd)

    run(story())


def test_what_a_dead_worker_never_read_is_not_sent_to_the_next():
    async def story() -> None:
        fd = sealed_memfd(b"pem")
        names = tuple(f"{number:04}.{'x' * 50}" for number in range(1000))
        many = [Handed(names, "ecdsa", "0" * 64, True, fd)] * 20
        with slots(1) as (ours, [worker]):
            rollout = Rollout(5, many, ours)
            channel.send(worker, Hello(70))
            await until(lambda: rollout.slots[0].pid == 70)
            channel.send(worker, Hello(71))
            await until(lambda: rollout.slots[0].pid == 71)
            pids: list[int] = []
            while pids.count(71) < 20:
                pids.append((await heard(worker)).pid)
            assert 0 < pids.count(70) < 20
            rollout.close()
        os.close(fd)

    run(story())


def test_the_other_end_closing_is_survived(handed: list[Handed]):
    async def story() -> None:
        with slots(2) as (ours, workers):
            rollout = Rollout(5, handed, ours)
            channel.send(workers[0], Hello(70))
            workers[0].close()
            await enrol(workers[1], 71, 2)
            await until(lambda: rollout.slots[1].serving == 5)
            rollout.close()

    run(story())
