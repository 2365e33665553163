"""One conversation with a bot, as the bot's bytes decide it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from math import inf

import pytest

from botproxy import errors
from botproxy.http.body import CHUNKS_AT_ONCE
from botproxy.model import ResponseHead
from botproxy.net.deadlines import Deadlines
from botproxy.net.stream import SocketStream
from botproxy.upstream.connection import GUNICORN_IDLE, INTERIM_LIMIT, UpstreamConnection

Story = Callable[[UpstreamConnection, socket.socket], Awaitable[None]]


def tell(story: Story) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        loop = asyncio.get_running_loop()
        connection = UpstreamConnection(SocketStream(near, loop, Deadlines(loop)), "bot", 5)
        connection.begin()
        connection.request_sent = True
        try:
            await story(connection, far)
        finally:
            connection.shut()
            far.close()

    asyncio.run(asyncio.wait_for(main(), 10))


async def head(connection: UpstreamConnection, method: bytes = b"GET", deadline: float = inf) -> ResponseHead:
    return await connection.read_head(method, deadline)


async def body(connection: UpstreamConnection) -> bytes:
    data = b""
    while more := await connection.read_body():
        data += more
    return data


@pytest.mark.parametrize(
    ("response", "method", "content"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"GET", b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"GET", b"hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", b"HEAD", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"GET", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"GET", b""),
    ],
)
def test_a_clean_exchange_may_be_followed_by_another(response: bytes, method: bytes, content: bytes) -> None:
    async def story(connection: UpstreamConnection, far: socket.socket) -> None:
        far.send(response)
        await head(connection, method)
        assert await body(connection) == content
        assert connection.is_reusable()

    tell(story)


@pytest.mark.parametrize(
    ("response", "method"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more", b"GET"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", b"GET"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok", b"GET"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"HEAD"),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok", b"GET"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n0\r\n\r\n", b"GET"),
    ],
)
def test_anything_less_clean_is_not_reused(response: bytes, method: bytes) -> None:
    async def story(connection: UpstreamConnection, far: socket.socket) -> None:
        far.send(response)
        await head(connection, method)
        await body(connection)
        assert not connection.is_reusable()

    tell(story)


def test_tiny_chunks_leave_others_their_turn() -> None:
    async def story(connection: UpstreamConnection, far: socket.socket) -> None:
        head_ = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        far.send(head_ + b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n")
        await head(connection)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        another = asyncio.ensure_future(other())
        assert await body(connection) == b"x" * 5000
        another.cancel()
        assert turns >= 5000 // CHUNKS_AT_ONCE
        assert connection.is_reusable()

    tell(story)


def test_a_request_that_was_not_sent_whole_forbids_reuse() -> None:
    async def story(connection: UpstreamConnection, far: socket.socket) -> None:
        connection.request_sent = False
        far.send(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
        await head(connection)
        assert not connection.is_reusable()

    tell(story)


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello", errors.UpstreamAborted),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", errors.UpstreamAborted),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n", errors.UpstreamAborted),
    ],
)
def test_a_body_that_breaks_off_is_never_complete(response: bytes, error: type[Exception]) -> None:
    async def story(connection: UpstreamConnection, far: socket.socket) -> None:
        far.send(response)
        far.close()
        await head(connection)
        with pytest.raises(error):
            await body(connection)

    tell(story)


def test_a_body_without_length_lasts_until_the_end() -> None:
    async def story(connection: UpstreamConnection, far: socket.socket) -> None:
        far.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        far.close()
        await head(connection)
        assert await body(connection) == b"hello"
        assert connection.body_complete
        assert not connection.is_reusable()

    tell(story)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", errors.UpstreamClosed),
        (b"HTTP/1.1 200 OK\r\nConte", errors.BadResponse),
        (b"SSH-2.0-OpenSSH\r\n", errors.BadResponse),
        (b"\x15\x03\x01\x00\x02\x02F", errors.BadResponse),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", errors.BadResponse),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" * (INTERIM_LIMIT + 1), errors.BadResponse),
    ],
)
def test_what_is_no_response_is_named(said: bytes, error: type[Exception]) -> None:
    async def story(connection: UpstreamConnection, far: socket.socket) -> None:
        far.send(said)
        far.close()
        with pytest.raises(error):
            await head(connection)

    tell(story)


def test_interim_responses_are_dropped_and_a_100_is_told() -> None:
    async def story(connection: UpstreamConnection, far: socket.socket) -> None:
        class Upload:
            def response_deadline(self) -> float:
                return inf

            def on_continue(self) -> None:
                told.append(1)

        told: list[int] = []
        far.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 201 Created\r\n\r\n")
        response = await connection.read_head(b"GET", inf, Upload())
        assert (response.status, told) == (201, [1])

    tell(story)


def test_a_silent_bot_runs_into_the_deadline() -> None:
    async def story(connection: UpstreamConnection, far: socket.socket) -> None:
        with pytest.raises(errors.ResponseTimeout):
            await head(connection, deadline=asyncio.get_running_loop().time() + 0.05)

    tell(story)


@pytest.mark.parametrize("server", [b"gunicorn", b"gunicorn/20.1"])
def test_gunicorn_is_known_to_close_early(server: bytes) -> None:
    async def story(connection: UpstreamConnection, far: socket.socket) -> None:
        far.send(b"HTTP/1.1 200 OK\r\nServer: " + server + b"\r\nContent-Length: 0\r\n\r\n")
        await head(connection)
        assert connection.idle_limit == GUNICORN_IDLE < 2.0

    tell(story)
