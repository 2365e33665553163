"""TLS on a bare socket, where it differs from a bare socket."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path

import pytest
import uvloop

from botproxy.config.schema import Tls
from botproxy.net.deadlines import Deadlines
from botproxy.net.stream import StreamClosed
from botproxy.tls import stream as tls
from botproxy.tls.context import certificate_context, listener_context, sealed_memfd
from botproxy.tls.stream import TlsStream
from tests.certs import Authority

Story = Callable[[TlsStream], Awaitable[None]]


class Chosen:
    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context


@pytest.fixture(scope="module")
def listener(ca: Authority) -> ssl.SSLContext:
    issued = ca.issue("localhost")
    pem = sealed_memfd(issued.chain_pem + issued.key_pem)
    try:
        served = Chosen(certificate_context([pem]))
    finally:
        os.close(pem)
    context = listener_context(Tls())
    tls.install(context, lambda _: served)
    return context


def run(story: Coroutine[object, object, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(story, 10))


def tell(
    listener: ssl.SSLContext,
    ca: Authority,
    client: Callable[[ssl.SSLSocket], None],
    story: Story,
    pair: tuple[socket.socket, socket.socket] | None = None,
) -> None:
    """`client` in a thread, `story` with the accepted stream."""
    near, far = pair or socket.socketpair()
    near.setblocking(False)

    def talk() -> None:
        with ca.trust().wrap_socket(far, server_hostname="localhost") as sock:
            client(sock)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(loop)
        stream = await tls.accept(near, listener, loop, deadlines, loop.time() + 5)
        try:
            await story(stream)
        finally:
            stream.shut()

    thread = threading.Thread(target=talk)
    thread.start()
    run(main())
    thread.join(5)


async def everything(stream: TlsStream) -> bytes:
    data = b""
    while more := await stream.read():
        data += more
    return data


def test_what_came_before_a_broken_end_is_delivered(listener: ssl.SSLContext, ca: Authority) -> None:
    """A peer that closes without close_notify: the end is no orderly one, and nothing before it is lost."""

    def client(sock: ssl.SSLSocket) -> None:
        sock.sendall(b"x" * 40_000)
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # no close_notify

    async def story(stream: TlsStream) -> None:
        got = bytearray()

        async def read_on() -> None:
            while more := await stream.read():
                got.extend(more)

        with pytest.raises(StreamClosed):
            await read_on()
        assert len(got) == 40_000

    tell(listener, ca, client, story)


@pytest.mark.parametrize("how", [b"\0" * 8, b"\1\0\0\0\0\0\0\0"], ids=["without a word", "by a reset"])
def test_a_connection_that_broke_is_gone_with_who_served_it(
    listener: ssl.SSLContext, ca: Authority, how: bytes
) -> None:
    """At once: what waits for the garbage collector is memory held and, for many, time spent."""
    left: list[weakref.ref[TlsStream]] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near = server.accept()[0]

    def client(sock: ssl.SSLSocket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)
        sock.close()

    async def story(stream: TlsStream) -> None:
        left.append(weakref.ref(stream))
        with pytest.raises(StreamClosed):
            await stream.read()
        stream.write(b"nobody hears it")

    gc.disable()
    try:
        tell(listener, ca, client, story, (near, far))
        assert left[0]() is None
    finally:
        gc.enable()


def test_a_stream_has_no_dictionary_of_its_own(listener: ssl.SSLContext, ca: Authority) -> None:
    """CPython keeps at most thirty attributes without one."""

    async def story(stream: TlsStream) -> None:
        stream.write(b"hello")
        await stream.drain()
        assert await stream.read() == b"hello"
        assert len(vars(stream)) <= 30

    tell(listener, ca, lambda sock: sock.sendall(sock.recv(5)), story)


def test_close_notify_is_the_orderly_end(listener: ssl.SSLContext, ca: Authority) -> None:
    def client(sock: ssl.SSLSocket) -> None:
        sock.sendall(b"last")
        sock.settimeout(0.2)
        with pytest.raises((TimeoutError, ssl.SSLError)):
            sock.unwrap()

    async def story(stream: TlsStream) -> None:
        assert await everything(stream) == b"last"

    tell(listener, ca, client, story)


def test_after_our_end_the_peer_is_still_heard(listener: ssl.SSLContext, ca: Authority) -> None:
    def client(sock: ssl.SSLSocket) -> None:
        assert sock.recv(10) == b""
        sock.sendall(b"heard?")

    async def story(stream: TlsStream) -> None:
        stream.send_end()
        assert await stream.read() == b"heard?"

    tell(listener, ca, client, story)


def test_what_crosses_our_end_is_heard(listener: ssl.SSLContext, ca: Authority) -> None:
    """OpenSSL takes what comes after our close_notify for an error if it gets to see it there."""
    sent = threading.Event()

    def client(sock: ssl.SSLSocket) -> None:
        sock.sendall(b"crossing")
        sent.set()
        assert sock.recv(10) == b""
        sock.sendall(b", and later")

    async def story(stream: TlsStream) -> None:
        assert sent.wait(5)  # it lies in the kernel, for the loop stands still
        stream.send_end()
        data = await stream.read()
        while data != b"crossing, and later":
            data += await stream.read()

    tell(listener, ca, client, story)


def test_an_end_right_behind_the_last_bytes_is_seen(listener: ssl.SSLContext, ca: Authority) -> None:
    """Nothing follows that would wake us once more: the peer waits for our end."""
    sent = threading.Event()

    def client(sock: ssl.SSLSocket) -> None:
        sock.sendall(b"last")
        sock.settimeout(0.1)
        with pytest.raises((TimeoutError, ssl.SSLError)):
            sock.unwrap()  # ours is out when the wait for the other one is over
        sent.set()

    async def story(stream: TlsStream) -> None:
        assert sent.wait(5)
        assert await everything(stream) == b"last"

    tell(listener, ca, client, story)


def in_memory(ca: Authority) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A client whose bytes a test sends when it wants to: with what it gets, and what it says."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    return ca.trust().wrap_bio(incoming, outgoing, server_hostname="localhost"), incoming, outgoing


@pytest.mark.parametrize("orderly", [True, False])
def test_an_end_that_comes_with_the_handshake_is_taken_for_what_it_is(
    listener: ssl.SSLContext, ca: Authority, orderly: bool
) -> None:
    """Finished, the first request and the end of TCP at once: only close_notify makes it an orderly one."""
    near, far = socket.socketpair()
    near.setblocking(False)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        client, incoming, outgoing = in_memory(ca)
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        far.sendall(outgoing.read())
        accepting = loop.create_task(tls.accept(near, listener, loop, Deadlines(loop), loop.time() + 5))
        far.setblocking(False)
        incoming.write(await loop.sock_recv(far, 65536))
        client.do_handshake()
        client.write(b"request")
        if orderly:
            with pytest.raises(ssl.SSLWantReadError):
                client.unwrap()
        far.send(outgoing.read())
        far.shutdown(socket.SHUT_WR)
        stream = await accepting
        assert await stream.read() == b"request"
        if orderly:
            assert await stream.read() == b""
        else:
            with pytest.raises(StreamClosed):
                await stream.read()
        stream.shut()

    run(main())
    far.close()


def has_ticket(client: ssl.SSLObject) -> bool:
    return client.session is not None and client.session.has_ticket


@pytest.mark.parametrize("asks", [False, True], ids=["alone", "with a request"])
def test_a_ticket_goes_with_the_answer_when_one_is_due(
    listener: ssl.SSLContext, ca: Authority, asks: bool
) -> None:
    """Else at once: Nagle's algorithm keeps the first request back until something acknowledges Finished."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # shows what is sent together
    near.setblocking(False)
    far.setblocking(False)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        client, incoming, outgoing = in_memory(ca)
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        far.send(outgoing.read())
        accepting = loop.create_task(tls.accept(near, listener, loop, Deadlines(loop), loop.time() + 5))
        incoming.write(await loop.sock_recv(far, 65536))
        client.do_handshake()
        if asks:
            client.write(b"request")
        far.send(outgoing.read())
        stream = await accepting
        if asks:
            assert await stream.read() == b"request"
        else:
            incoming.write(far.recv(65536))
            with pytest.raises(ssl.SSLWantReadError):
                client.read()
            assert has_ticket(client)
        with pytest.raises(BlockingIOError):
            far.recv(65536)
        stream.write(b"answer")
        incoming.write(far.recv(65536))
        assert client.read() == b"answer"
        assert has_ticket(client)
        stream.shut()

    run(main())
    far.close()


def by_hand(
    listener: ssl.SSLContext,
    ca: Authority,
    story: Callable[
        [TlsStream, asyncio.Task[None], Callable[[bytes], bytes], socket.socket], Awaitable[None]
    ],
) -> None:
    """`story` gets a stream whose client has sent its last flight, its handshake, of which nobody knows yet
    that it is over, what seals the client's bytes, and the client's end of the wire."""
    near, far = socket.socketpair()
    near.setblocking(False)
    client, incoming, outgoing = in_memory(ca)

    def sealed(data: bytes) -> bytes:
        client.write(data)
        return outgoing.read()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stream = TlsStream(near, loop, Deadlines(loop))
        shaking = asyncio.create_task(stream.shake(listener, None, loop.time() + 5))
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        far.send(outgoing.read())
        incoming.write(await asyncio.to_thread(far.recv, 65536))
        client.do_handshake()
        far.send(outgoing.read())
        await story(stream, shaking, sealed, far)
        stream.shut()

    with far:
        run(main())


def test_a_peer_that_has_sent_half_a_record_is_not_quiet(listener: ssl.SSLContext, ca: Authority) -> None:
    """A request whose record came in two segments has begun, whatever the kernel holds of it."""

    async def story(
        stream: TlsStream, shaking: asyncio.Task[None], sealed: Callable[[bytes], bytes], far: socket.socket
    ) -> None:
        await shaking
        assert stream.is_quiet()
        record = sealed(b"a request")
        far.send(record[:10])
        stream._on_readable()
        assert not stream.is_quiet()
        far.send(record[10:])
        assert await stream.read() == b"a request"
        assert stream.is_quiet()

    by_hand(listener, ca, story)


@pytest.mark.parametrize("cut", [1, 4, 5, 10, -1])
def test_nor_is_one_that_has_sent_it_behind_a_whole_one(
    listener: ssl.SSLContext, ca: Authority, cut: int
) -> None:
    """What follows an answer would be taken for the next one, which may be somebody else's."""

    async def story(
        stream: TlsStream, shaking: asyncio.Task[None], sealed: Callable[[bytes], bytes], far: socket.socket
    ) -> None:
        await shaking
        whole, record = sealed(b"an answer"), sealed(b"another")
        far.send(whole + record[:cut])
        assert await stream.read() == b"an answer"
        assert not stream.is_quiet()
        for byte in record[cut:-1]:
            far.send(bytes((byte,)))
            stream._on_readable()
            assert not stream.is_quiet()
        far.send(record[-1:])
        assert await stream.read() == b"another"
        assert stream.is_quiet()

    by_hand(listener, ca, story)


@pytest.mark.parametrize("cut", [3, 10])
def test_nor_one_that_has_sent_it_behind_its_handshake(
    listener: ssl.SSLContext, ca: Authority, cut: int
) -> None:
    async def story(
        stream: TlsStream, shaking: asyncio.Task[None], sealed: Callable[[bytes], bytes], far: socket.socket
    ) -> None:
        far.send(sealed(b"a request") + sealed(b"another")[:cut])
        await shaking
        assert await stream.read() == b"a request"
        assert not stream.is_quiet()

    by_hand(listener, ca, story)


def test_what_comes_behind_the_handshake_before_anybody_looks_is_deciphered(
    listener: ssl.SSLContext, ca: Authority
) -> None:
    """The end of the handshake wakes its task, which has its turn only when more has arrived."""

    async def story(
        stream: TlsStream, shaking: asyncio.Task[None], sealed: Callable[[bytes], bytes], far: socket.socket
    ) -> None:
        stream._on_readable()
        far.send(sealed(b"at once"))
        stream._on_readable()
        await shaking
        assert await stream.read() == b"at once"

    by_hand(listener, ca, story)


@pytest.mark.parametrize("size", [0, 1, 5, 100])
def test_a_client_that_leaves_inside_its_hello_hears_nothing(
    listener: ssl.SSLContext, ca: Authority, size: int
) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    client, _, outgoing = in_memory(ca)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    far.sendall(outgoing.read()[:size])
    far.shutdown(socket.SHUT_WR)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(tls.HandshakeFailed) as caught:
            await tls.accept(near, listener, loop, Deadlines(loop), loop.time() + 5)
        assert caught.value.alert is None

    run(main())
    assert far.recv(100) == b""
    far.close()


def test_what_does_not_fit_into_the_kernel_follows(listener: ssl.SSLContext, ca: Authority) -> None:
    size = 3_000_000

    def client(sock: ssl.SSLSocket) -> None:
        got = 0
        while got < size:
            got += len(sock.recv(65536))
        assert sock.recv(10) == b""

    async def story(stream: TlsStream) -> None:
        for _ in range(size // 30_000):
            stream.write(b"y" * 30_000)
            await stream.drain()
        await stream.close()
        assert stream.error is None

    tell(listener, ca, client, story)


def test_a_client_that_never_comes_to_an_end_of_its_hello_is_sent_away(
    listener: ssl.SSLContext,
) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    record = b"\x16\x03\x01\x40\x00"
    far.sendall(record + b"\x01\x01\x00\x00" + bytes(0x3FFC) + (record + bytes(0x4000)) * 5)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(tls.HandshakeFailed):
            await tls.accept(near, listener, loop, Deadlines(loop), loop.time() + 5)

    run(main())
    far.close()


def test_the_peers_alert_is_kept(listener: ssl.SSLContext, tmp_path: Path) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)

    def client() -> None:
        with pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(far, server_hostname="localhost")
        far.close()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(tls.HandshakeFailed) as caught:
            await tls.accept(near, listener, loop, Deadlines(loop), loop.time() + 5)
        assert caught.value.alert == "unknown_ca"
        assert caught.value.sni == "localhost"

    thread = threading.Thread(target=client)
    thread.start()
    run(main())
    thread.join(5)
