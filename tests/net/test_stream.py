"""Bytes over a socket: bounds, deadlines, ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from botproxy.net.deadlines import Deadlines
from botproxy.net.stream import READ_LIMIT, READ_SIZE, WRITE_HIGH, SocketStream, StreamClosed, StreamTimeout

Story = Callable[[SocketStream, socket.socket], Awaitable[None]]


def tell(story: Story) -> None:
    """Run `story` with a stream and the far end of its socket."""

    async def main() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.settimeout(5)
        loop = asyncio.get_running_loop()
        stream = SocketStream(near, loop, Deadlines(loop))
        try:
            await story(stream, far)
        finally:
            stream.shut()
            far.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(main(), 10))


def now() -> float:
    return asyncio.get_running_loop().time()


def test_what_arrives_is_read_and_what_is_put_back_comes_first() -> None:
    async def story(stream: SocketStream, far: socket.socket) -> None:
        far.send(b"hello")
        assert await stream.read() == b"hello"
        stream.unread(b"lo")
        far.send(b" again")
        assert await stream.read() == b"lo"
        assert await stream.read() == b" again"

    tell(story)


def test_the_end_of_the_peer_is_an_empty_read_after_everything_it_sent() -> None:
    async def story(stream: SocketStream, far: socket.socket) -> None:
        far.send(b"last")
        far.shutdown(socket.SHUT_WR)
        assert await stream.read() == b"last"
        assert await stream.read() == b""
        assert await stream.read() == b""

    tell(story)


def test_a_read_ends_at_its_deadline() -> None:
    async def story(stream: SocketStream, far: socket.socket) -> None:
        with pytest.raises(StreamTimeout):
            await stream.read(now() + 0.1)
        far.send(b"late")
        assert await stream.read() == b"late"

    tell(story)


def test_a_peer_that_is_not_read_is_stopped() -> None:
    async def story(stream: SocketStream, far: socket.socket) -> None:
        far.setblocking(False)
        sent = 0
        stalled = 0
        while stalled < 20:  # turns of the loop in which nothing more fits
            try:
                sent += far.send(b"x" * 65536)
                stalled = 0
            except BlockingIOError:
                stalled += 1
            await asyncio.sleep(0)
        assert len(stream.peek()) < READ_LIMIT + READ_SIZE
        taken = 0
        while taken < sent:
            taken += len(await stream.read(now() + 5))
        assert taken == sent

    tell(story)


def test_writes_beyond_the_mark_wait_for_the_peer() -> None:
    async def story(stream: SocketStream, far: socket.socket) -> None:
        while stream.unsent <= WRITE_HIGH:
            stream.write(b"x" * 65536)
        assert stream.unsent < 64 * 1024
        drained = asyncio.ensure_future(stream.drain())
        await asyncio.sleep(0)
        assert not drained.done()
        far.setblocking(False)
        while not drained.done():
            try:
                far.recv(1 << 20)
            except BlockingIOError:
                await asyncio.sleep(0.001)
        await drained

    tell(story)


def test_our_end_follows_what_is_unsent() -> None:
    async def story(stream: SocketStream, far: socket.socket) -> None:
        while not stream.unsent:
            stream.write(b"x" * 65536)
        stream.send_end()
        loop = asyncio.get_running_loop()
        far.setblocking(False)
        while await loop.sock_recv(far, 1 << 20):
            pass  # it comes to an end

    tell(story)


def test_a_peer_that_takes_nothing_loses_patience() -> None:
    async def story(stream: SocketStream, far: socket.socket) -> None:
        stream.set_write_patience(0.1)
        while stream.unsent <= WRITE_HIGH:
            stream.write(b"x" * 65536)
        with pytest.raises(StreamTimeout):
            await stream.drain()

    tell(story)


def test_a_peer_that_takes_nothing_is_cut_even_when_nobody_drains() -> None:
    async def story(stream: SocketStream, far: socket.socket) -> None:
        stream.set_write_patience(0.1)
        while not stream.unsent:
            stream.write(b"x" * 65536)
        with pytest.raises(StreamClosed):
            await stream.read(now() + 5)

    tell(story)


@pytest.mark.parametrize("paused", [False, True])
def test_a_peer_that_leaves_is_noticed_while_nobody_reads(paused: bool) -> None:
    async def story(stream: SocketStream, far: socket.socket) -> None:
        lost = asyncio.Event()
        stream.on_lost = lost.set
        if paused:
            far.setblocking(False)
            while len(stream.peek()) < READ_LIMIT:
                try:
                    far.send(b"x" * 4096)
                except BlockingIOError:
                    pass  # full: the loop gets a turn below
                await asyncio.sleep(0)
        far.close()
        await asyncio.wait_for(lost.wait(), 1)

    tell(story)


def test_a_stream_is_quiet_only_while_the_peer_has_said_nothing() -> None:
    async def story(stream: SocketStream, far: socket.socket) -> None:
        assert stream.is_quiet()
        far.send(b"?")
        assert not stream.is_quiet()
        assert await stream.read() == b"?"
        assert stream.is_quiet()
        far.close()
        assert not stream.is_quiet()

    tell(story)


def test_what_the_peer_said_before_it_closed_is_read_although_writing_failed() -> None:
    async def story(stream: SocketStream, far: socket.socket) -> None:
        far.send(b"no thanks")
        far.close()
        stream.write(b"x")
        stream.write(b"x")
        assert await stream.read() == b"no thanks"

    tell(story)


def test_an_orderly_close_delivers_everything_first() -> None:
    async def story(stream: SocketStream, far: socket.socket) -> None:
        data = b"x" * 300_000
        stream.write(data)
        closing = asyncio.ensure_future(stream.close())
        far.setblocking(False)
        got = b""
        while True:
            try:
                more = far.recv(65536)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            if not more:
                break
            got += more
        await closing
        assert got == data

    tell(story)


def test_who_never_stops_sending_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it left to the sweep, which seldom finds somebody waiting where bytes are always there."""
    monkeypatch.setattr("botproxy.net.stream.LINGER_SECONDS", 0.3)

    async def main() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(loop)
        stream = SocketStream(near, loop, deadlines)
        deadlines.forget(stream)
        sending = asyncio.ensure_future(asyncio.to_thread(send_for_ever, far))
        try:
            await asyncio.wait_for(stream.close(linger=True), 5)
        finally:
            far.close()
            await asyncio.wait([sending])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def send_for_ever(sock: socket.socket) -> None:
    try:
        while True:
            sock.sendall(b"z" * 65536)
    except OSError:
        return


def test_an_abort_is_a_reset_and_not_an_end() -> None:
    async def story(stream: SocketStream, far: socket.socket) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            accepted, _ = server.accept()
        accepted.setblocking(False)
        loop = asyncio.get_running_loop()
        other = SocketStream(accepted, loop, Deadlines(loop))
        other.write(b"half")
        other.abort()
        with client:
            assert client.recv(10) == b"half"
            with pytest.raises(ConnectionResetError):
                client.recv(10)

    tell(story)


def test_whoever_waits_is_told_when_the_stream_is_shut() -> None:
    async def story(stream: SocketStream, far: socket.socket) -> None:
        reading = asyncio.ensure_future(stream.read())
        await asyncio.sleep(0)
        stream.shut()
        with pytest.raises(StreamClosed):
            await reading

    tell(story)
