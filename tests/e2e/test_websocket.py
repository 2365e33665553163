"""Upgrades: what passes through, what does not, and how tunnels end."""

from __future__ import annotations

import base64
import hashlib
import select
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from tests.e2e.conftest import Start
from tests.harness import Bot, Proxied, descriptors_of, free_port
from tests.wire import OK, PATIENCE, HelloFor, Message, Wire, get

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    f"Sec-WebSocket-Key: {KEY}",
    "Sec-WebSocket-Version: 13",
)
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
ACCEPT = base64.b64encode(hashlib.sha1((KEY + _GUID).encode()).digest()).decode()


def switching(accept: str = ACCEPT, upgrade: str = "websocket") -> bytes:
    return (
        f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: {upgrade}\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n"
    ).encode()


@pytest.fixture(scope="module")
def bot_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def front(start_once: Start, bot_port: int) -> Proxied:
    return start_once(f"http://127.0.0.1:{bot_port}", timeouts={"tunnel": "1s"})


@pytest.fixture
def client(front: Proxied, trust: ssl.SSLContext) -> Iterator[Wire]:
    with front.connect(trust) as wire:
        yield wire


@pytest.fixture
def bot(bot_port: int) -> Iterator[Callable[[Callable[[Wire], None]], Bot]]:
    made: list[Bot] = []

    def make(behaviour: Callable[[Wire], None]) -> Bot:
        made.append(Bot(behaviour, port=bot_port))
        return made[-1]

    yield make
    for one in made:
        one.close()


BotFor = Callable[[Callable[[Wire], None]], Bot]


def echo(wire: Wire) -> None:
    wire.read_until(b"\r\n\r\n")
    wire.send(switching())
    while data := wire.read_some():
        wire.send(data)


def test_a_websocket_library_on_both_ends_notices_nothing(
    front: Proxied, bot_port: int, trust: ssl.SSLContext
) -> None:
    def behave(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    with serve(behave, "127.0.0.1", bot_port, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        sock = front.tcp()
        with connect(
            "wss://localhost/chat?room=1", sock=sock, ssl=trust, server_hostname="localhost", max_size=None
        ) as socket:
            for message in ("hello", b"\x00\xff", "ü" * 1000, b"x" * 3_000_000, ""):
                socket.send(message)
                assert socket.recv(timeout=10) == message
            assert socket.ping().wait(5)
        assert socket.close_code == 1000
        server.shutdown()
        thread.join()


def test_the_bot_sees_a_websocket_handshake(bot: BotFor, client: Wire) -> None:
    seen: list[Message] = []

    def behave(wire: Wire) -> None:
        seen.append(Message(wire.read_until(b"\r\n\r\n")))
        wire.send(switching())

    bot(behave)
    client.send(get("/chat", *HANDSHAKE, "Sec-WebSocket-Protocol: chat", "Origin: https://localhost"))
    answer = client.read_message()
    assert answer.status == 101
    assert answer.value("upgrade").lower() == "websocket"
    assert answer.value("connection").lower() == "upgrade"
    assert answer.value("sec-websocket-accept") == ACCEPT
    assert "content-length" not in answer
    assert "transfer-encoding" not in answer
    request = seen[0]
    assert request.value("upgrade").lower() == "websocket"
    assert request.value("connection").lower() == "upgrade"
    assert request.value("sec-websocket-key") == KEY
    assert request.value("sec-websocket-protocol") == "chat"
    assert request.value("origin") == "https://localhost"


def test_bytes_pass_both_ways_after_the_101(bot: BotFor, client: Wire) -> None:
    bot(echo)
    client.send(get("/", *HANDSHAKE))
    assert client.read_message().status == 101
    for size in (1, 1000, 300_000):
        data = bytes(size)
        client.send(data)
        assert client.read_exactly(size) == data


def test_bytes_sent_too_early_wait_for_the_101(bot: BotFor, client: Wire) -> None:
    def behave(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        assert not wire.has_more(0.3), "bytes of a tunnel that is not one yet"
        wire.send(switching() + b"from the bot")
        assert wire.read_exactly(5) == b"early"
        wire.send(b"got it")

    bot(behave)
    client.send(get("/", *HANDSHAKE) + b"early")
    assert client.read_message().status == 101
    assert client.read_exactly(18) == b"from the botgot it"


def test_a_refused_upgrade_is_an_ordinary_answer(bot: BotFor, client: Wire) -> None:
    targets: list[str] = []

    def behave(wire: Wire) -> None:
        while (request := wire.read_message()).head:
            targets.append(request.target)
            refused = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"
            wire.send(refused if "upgrade" in request else OK)

    bot(behave)
    client.send(get("/chat", *HANDSHAKE) + get("/next"))
    answer = client.read_message()
    assert (answer.status, answer.body) == (403, b"no")
    assert "upgrade" not in answer
    assert client.read_message().status == 200, "what follows is a request, no tunnel"
    assert targets == ["/chat", "/next"]


@pytest.mark.parametrize(
    "answer",
    [
        switching(accept="c29tZXRoaW5nIGVsc2UgYXMgYSBrZXk="),
        switching(upgrade="h2c"),
        switching().replace(b"Sec-WebSocket-Accept", b"X-Accept"),
    ],
    ids=["wrong accept", "another protocol", "no accept"],
)
def test_a_101_that_does_not_fit_is_502(bot: BotFor, client: Wire, answer: bytes) -> None:
    def behave(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        wire.send(answer)
        assert not wire.read_to_end()[0], "no tunnel may come of it"

    bot(behave)
    assert client.request(get("/", *HANDSHAKE)).status == 502


def test_a_101_nobody_asked_for_is_502(bot: BotFor, client: Wire) -> None:
    def behave(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        wire.send(switching())
        assert not wire.read_to_end()[0]

    bot(behave)
    assert client.request(get()).status == 502


@pytest.mark.parametrize("protocol", ["h2c", "TLS/1.0", "foo/2"])
def test_other_protocols_are_not_offered_to_the_bot(bot: BotFor, client: Wire, protocol: str) -> None:
    seen: list[Message] = []

    def behave(wire: Wire) -> None:
        seen.append(wire.read_message())
        wire.send(OK)

    bot(behave)
    upgrade = (f"Upgrade: {protocol}", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABk")
    assert client.request(get("/", *upgrade)).status == 200
    assert "upgrade" not in seen[0]
    assert "http2-settings" not in seen[0]
    assert not any("upgrade" in value.lower() for value in seen[0].values("connection"))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/", *HANDSHAKE, method="POST"), 400),
        (get("/", *HANDSHAKE[:2], "Sec-WebSocket-Version: 13"), 400),
        (get("/", *HANDSHAKE[:3], "Sec-WebSocket-Version: 8"), 426),
        (get("/", *HANDSHAKE[:3]), 426),
        (get("/", "Upgrade: websocket, h2c", *HANDSHAKE[1:]), 400),
    ],
    ids=["POST", "no key", "old version", "no version", "two protocols"],
)
def test_a_malformed_handshake_never_reaches_the_bot(
    bot: BotFor, client: Wire, request_: bytes, status: int
) -> None:
    behind = bot(echo)
    response = client.request(request_)
    assert response.status == status
    if status == 426:
        assert response.value("sec-websocket-version") == "13"
    assert behind.connections == 0


# The end of a tunnel


def test_a_bot_that_ends_first_still_hears_the_client(bot: BotFor, client: Wire) -> None:
    """Even when the client closes without close_notify, as many do after their Close frame."""
    last: list[bytes] = []

    def behave(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        wire.send(switching() + b"bye")
        wire.send_end()
        last.append(wire.read_to_end()[0])

    behind = bot(behave)
    client.send(get("/", *HANDSHAKE))
    assert client.read_message().status == 101
    assert client.read_to_end() == (b"bye", True)
    # Behind close_notify comes the FIN. Bytes that cross the close_notify itself are lost: OpenSSL's
    # SSL_shutdown, which Python always calls twice, takes them for an error.
    ended = select.poll()
    ended.register(client.sock, select.POLLRDHUP)
    assert ended.poll(5000)
    client.send(b"last words")
    client.close()
    behind.wait_for(lambda: bool(last))
    assert last == [b"last words"]


def test_a_client_that_ends_first_still_hears_the_bot(
    bot: BotFor, front: Proxied, trust: ssl.SSLContext
) -> None:
    """The client's side is a TLS machine in memory: Python's own socket reads nothing after it ended."""
    heard: list[tuple[bytes, bool]] = []

    def behave(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        wire.send(switching())
        heard.append(wire.read_to_end())
        wire.send(b"x" * 5000)

    behind = bot(behave)
    client = HelloFor(trust)
    with front.tcp() as sock:
        sock.sendall(client.data)
        client.finish(sock)
        assert b" 101 " in client.exchange(sock, get("/", *HANDSHAKE))
        client.tls.write(b"bye")
        received = client.half_close(sock)
    behind.wait_for(lambda: bool(heard))
    assert heard == [(b"bye", True)]
    assert received > 5000


def test_a_client_that_is_cut_off_ends_the_tunnel(bot: BotFor, client: Wire) -> None:
    ends: list[bytes] = []

    def behave(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        wire.send(switching())
        ends.append(wire.read_to_end()[0])

    behind = bot(behave)
    client.send(get("/", *HANDSHAKE))
    assert client.read_message().status == 101
    started = time.monotonic()
    client.reset()
    behind.wait_for(lambda: bool(ends))
    assert time.monotonic() - started < 1.3
    assert ends == [b""]


def test_a_bot_that_is_cut_off_ends_the_tunnel(bot: BotFor, client: Wire) -> None:
    may_end = threading.Event()

    def behave(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        wire.send(switching() + b"data")
        may_end.wait(5)
        wire.reset()

    bot(behave)
    client.send(get("/", *HANDSHAKE))
    assert client.read_message().status == 101
    assert client.read_exactly(4) == b"data"
    started = time.monotonic()
    may_end.set()
    assert client.read_to_end()[0] == b""
    assert time.monotonic() - started < 1


def test_silence_on_both_sides_ends_a_tunnel(bot: BotFor, front: Proxied, trust: ssl.SSLContext) -> None:
    """`timeouts.tunnel` is one second here."""
    behind = bot(echo)
    with front.connect(trust) as client:
        client.send(get("/", *HANDSHAKE))
        assert client.read_message().status == 101
        started = time.monotonic()
        for _ in range(5):  # traffic one way and back keeps it
            client.send(b"x")
            assert client.read_exactly(1) == b"x"
            assert not client.has_more(0.4)
        assert time.monotonic() - started > 1.5
        silent_since = time.monotonic()
        assert client.read_to_end()[0] == b""
        assert time.monotonic() - silent_since < 2
    behind.wait_for(lambda: behind.open == 0)


def test_traffic_in_one_direction_keeps_a_tunnel(bot: BotFor, client: Wire) -> None:
    def behave(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        wire.send(switching())
        for _ in range(5):
            assert not wire.has_more(0.4)
            wire.send(b"x")

    bot(behave)
    client.send(get("/", *HANDSHAKE))
    assert client.read_message().status == 101
    assert client.read_exactly(5) == b"xxxxx"


def test_a_client_that_stops_reading_is_let_go(start: Start, trust: ssl.SSLContext) -> None:
    """Its place is free again after the patience for writes, although it keeps its connection open."""

    def flood(wire: Wire) -> None:
        wire.read_message()
        wire.send(switching())
        while True:
            wire.send(b"x" * 65536)

    with Bot(flood) as bot:
        front = start(bot.url, timeouts={"write": "300ms"})
        (worker,) = front.workers()
        before = descriptors_of(worker)
        with front.connect(trust) as client:
            client.send(get("/", *HANDSHAKE))
            client.read_until(b"\r\n\r\n")
            bot.wait_for(lambda: bot.connections == 1 and bot.open == 0)
            deadline = time.monotonic() + PATIENCE
            while descriptors_of(worker) > before:
                assert time.monotonic() < deadline, "the connection is still held"
