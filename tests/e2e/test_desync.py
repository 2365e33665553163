"""Multi-step attempts to make botproxy and a bot disagree about where a request or response ends."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Start
from tests.harness import Bot, Proxied
from tests.wire import OK, PATIENCE, Message, Wire, get, post


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


# One client's bytes, another client's answer


REUSES = pytest.mark.parametrize("reuse", ["client", "shared"])
SMUGGLED = get("/smuggled")


def by_target(wire: Wire, bot: Bot) -> None:
    """Answers each request with its own target."""
    while (message := wire.read_message()).head:
        bot.saw(message)
        if not message.complete:
            return
        content = b"" if message.method == "HEAD" else message.target.encode()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(message.target), content))


@pytest.fixture
def echo() -> Iterator[Bot]:
    with Bot() as bot:
        bot.behave(lambda wire: by_target(wire, bot))
        yield bot


def targets(bot: Bot) -> list[str]:
    return [request.target for request in bot.requests if request.complete]


def assert_victim_is_served(front: Proxied, trust: ssl.SSLContext) -> None:
    with front.connect(trust) as victim:
        assert victim.request(get("/victim")).body == b"/victim"
        assert victim.request(get("/victim/2")).body == b"/victim/2"


@REUSES
@pytest.mark.parametrize(
    "fields",
    [
        [f"Content-Length: {len(SMUGGLED)}"],
        [f"Content-Length: {len(SMUGGLED)}", "Expect: 100-continue"],
        [f"Content-Length: {len(SMUGGLED)}", "Connection: close"],
    ],
    ids=["plain", "expect", "close"],
)
def test_a_body_that_is_a_request_stays_a_body(
    start: Start, trust: ssl.SSLContext, echo: Bot, reuse: str, fields: list[str]
) -> None:
    front = start(echo.url, upstream={"reuse": reuse})
    for method in ("GET", "POST", "HEAD", "OPTIONS"):
        echo.requests.clear()
        with front.connect(trust) as attacker:
            attacker.send(get("/attack", *fields, method=method) + SMUGGLED)
            assert attacker.read_until(b"\r\n\r\n")
            echo.wait_for(lambda: "/attack" in targets(echo))
            assert_victim_is_served(front, trust)
        assert targets(echo) == ["/attack", "/victim", "/victim/2"]
        assert echo.requests[0].body == SMUGGLED


@REUSES
@pytest.mark.parametrize(
    "hidden",
    [
        "Content-Length : {}",
        "Content-Length\t: {}",
        "Content-Length: +{}",
        "Content-Length: 0\r\nContent-Length: {}",
        "X: y\nContent-Length: {}",
        " Content-Length: {}",
        "Content_Length: {}",
        "Transfer-Encoding: identity\r\nContent-Length: {}",
        "Connection: Content-Length\r\nContent-Length: {}",
    ],
)
def test_a_hidden_length_reaches_no_bot(
    start: Start, trust: ssl.SSLContext, echo: Bot, reuse: str, hidden: str
) -> None:
    front = start(echo.url, upstream={"reuse": reuse})
    with front.connect(trust) as attacker:
        attacker.send(post("/attack", hidden.format(len(SMUGGLED)), body=SMUGGLED))
        response = attacker.read_message()
        assert response.status in (400, 501)
        assert attacker.read_to_end() == (b"", True)
    assert_victim_is_served(front, trust)
    assert targets(echo) == ["/victim", "/victim/2"]


@REUSES
def test_a_second_response_to_head_is_nobodys(start: Start, trust: ssl.SSLContext, reuse: str) -> None:
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"

    def answer(wire: Wire) -> None:
        while (message := wire.read_message()).head:
            bot.saw(message)
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
            if message.method == "HEAD":
                wire.send(head % len(evil) + evil)
            else:
                wire.send(head % len(message.target) + message.target.encode())

    with Bot(answer) as bot:
        front = start(bot.url, upstream={"reuse": reuse})
        with front.connect(trust) as attacker:
            attacker.send(get("/attack", method="HEAD"))
            assert attacker.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
            assert attacker.request(get("/own")).body == b"/own"
            assert_victim_is_served(front, trust)
        assert targets(bot) == ["/attack", "/own", "/victim", "/victim/2"]


@REUSES
def test_what_a_bot_says_unasked_is_nobodys_answer(start: Start, trust: ssl.SSLContext, reuse: str) -> None:
    pushed = threading.Event()
    push = threading.Event()

    def answer(wire: Wire) -> None:
        message = wire.read_message()
        bot.saw(message)
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(message.target))
        wire.send(message.target.encode())
        if message.target == "/first":
            push.wait()
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL")
            pushed.set()
        while wire.read_some():
            pass

    with Bot(answer) as bot:
        front = start(bot.url, upstream={"reuse": reuse})
        with front.connect(trust) as client:
            assert client.request(get("/first")).body == b"/first"
            push.set()
            assert pushed.wait(PATIENCE)
            assert client.request(get("/second")).body == b"/second"
        bot.wait_for(lambda: bot.open == 0 or reuse == "shared")
        assert targets(bot) == ["/first", "/second"]
        assert bot.connections == 2


# Answers before the request is over


@REUSES
@pytest.mark.parametrize("status", [200, 413])
@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_an_early_answer_ends_the_upload_and_both_connections(
    start: Start, trust: ssl.SSLContext, reuse: str, status: int, framing: str
) -> None:
    def answer(wire: Wire) -> None:
        message = Message(wire.read_until(b"\r\n\r\n"))
        bot.saw(message)
        if message.target == "/upload":
            wire.send(b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\nearly" % status)
            rest.append(wire.read_all())
        else:
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(message.target))
            wire.send(message.target.encode())

    rest: list[bytes] = []
    with Bot(answer) as bot:
        front = start(bot.url, upstream={"reuse": reuse})
        with front.connect(trust) as client:
            client.send(post("/upload", framing))
            response = client.read_message()
            assert (response.status, response.body) == (status, b"early")
            assert ("connection" in response) == (status >= 400), "a refusal announces the end"
            client.send(SMUGGLED)
            assert client.read_to_end() == (b"", True)
        bot.wait_for(lambda: bool(rest))
        assert b"smuggled" not in rest[0]
        assert b"0\r\n\r\n" not in rest[0], "the bot must see that the upload broke off"
        with front.connect(trust) as victim:
            assert victim.request(get("/victim")).body == b"/victim"
        assert [request.target for request in bot.requests] == ["/upload", "/victim"]


@pytest.mark.parametrize(
    ("fields", "host", "status"),
    [
        ([f"Content-Length: {len(SMUGGLED)}"], "elsewhere.example", 421),
        (["Transfer-Encoding: chunked"], "elsewhere.example", 421),
        ([f"Content-Length: {2000 + len(SMUGGLED)}"], "localhost", 413),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_the_body_of_a_request_answered_here_is_never_a_request(
    start: Start,
    trust: ssl.SSLContext,
    echo: Bot,
    fields: list[str],
    host: str,
    status: int,
    apart: bool,
) -> None:
    front = start(echo.url, routes=[{"hosts": ["localhost"]}], limits={"body": "1000B"})
    with front.connect(trust) as client:
        head = post("/attack", *fields).replace(b"localhost", host.encode())
        client.send(head if apart else head + SMUGGLED)
        assert client.read_message().status == status
        if apart:
            client.send(SMUGGLED)
        assert client.read_to_end() == (b"", True)
    assert_victim_is_served(front, trust)
    assert targets(echo) == ["/victim", "/victim/2"]


def test_every_request_of_a_connection_is_looked_at(start: Start, trust: ssl.SSLContext, echo: Bot) -> None:
    front = start(echo.url, routes=[{"hosts": ["localhost"]}])
    with front.connect(trust) as client:
        assert client.request(get("/good")).status == 200
        assert client.request(get("/evil").replace(b"localhost", b"evil.example")).status == 421
    with front.connect(trust) as client:
        assert client.request(get("/good")).status == 200
        client.send(get("/evil").replace(b"Host: localhost", b"Host: localhost\r\nHost: evil.example"))
        assert client.read_message().status == 400
        assert client.read_to_end() == (b"", True)
    assert targets(echo) == ["/good", "/good"]


# Expect: 100-continue


def expecting(target: str = "/upload") -> bytes:
    return post(target, f"Content-Length: {len(SMUGGLED)}", "Expect: 100-continue")


@REUSES
def test_no_body_follows_a_final_answer_to_an_expectation(
    start: Start, trust: ssl.SSLContext, reuse: str
) -> None:
    rest: list[bytes] = []

    def answer(wire: Wire) -> None:
        message = Message(wire.read_until(b"\r\n\r\n"))
        bot.saw(message)
        if message.target == "/upload":
            wire.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
            rest.append(wire.read_all())
        else:
            wire.send(OK)

    with Bot(answer) as bot:
        front = start(bot.url, upstream={"reuse": reuse})
        with front.connect(trust) as client:
            response = client.request(expecting())
            assert (response.status, response.body) == (403, b"no")
            client.send(SMUGGLED)
            assert client.read_to_end() == (b"", True)
        with front.connect(trust) as victim:
            assert victim.request(get("/victim")).body == b"ok"
        bot.wait_for(lambda: bool(rest))
        assert rest == [b""]
        assert [request.target for request in bot.requests] == ["/upload", "/victim"]


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 3], ids=["nothing", "100 thrice"])
def test_an_expectation_gets_one_100_whatever_the_bot_does(
    start: Start, trust: ssl.SSLContext, says: bytes
) -> None:
    def answer(wire: Wire) -> None:
        message = Message(wire.read_until(b"\r\n\r\n"))
        wire.send(says)
        assert wire.read_exactly(len(SMUGGLED)) == SMUGGLED
        bot.saw(message)
        wire.send(OK)

    with Bot(answer) as bot, start(bot.url).connect(trust) as client:
        client.send(expecting())
        assert client.read_message().status == 100
        client.send(SMUGGLED)
        assert client.read_message().body == b"ok"
        assert not client.has_more(0.1)


# Upgrades


HANDSHAKE = get(
    "/ws",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@REUSES
@pytest.mark.parametrize("status", [200, 403])
def test_a_refused_upgrade_opens_no_tunnel(
    start: Start, trust: ssl.SSLContext, reuse: str, status: int
) -> None:
    def answer(wire: Wire) -> None:
        while (message := wire.read_message()).head:
            bot.saw(message)
            code = status if message.target == "/ws" else 200
            wire.send(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (code, len(message.target)))
            wire.send(message.target.encode())

    with Bot(answer) as bot:
        front = start(bot.url, upstream={"reuse": reuse})
        with front.connect(trust) as client:
            client.send(HANDSHAKE + get("/behind"))
            assert client.read_message().status == status
            assert client.read_message().body == b"/behind"
            assert_victim_is_served(front, trust)
        behind = bot.requests[1]
        assert behind.target == "/behind"
        assert "x-forwarded-for" in behind, "it came as a request of ours, not through a tunnel"
        first = bot.connections - (2 if reuse == "client" else 1)
        assert first == 1, "a connection that was asked to switch carries nothing else"


@REUSES
def test_bytes_behind_a_handshake_wait_for_the_switch(
    start: Start, trust: ssl.SSLContext, reuse: str
) -> None:
    accept = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

    def answer(wire: Wire) -> None:
        bot.saw(Message(wire.read_until(b"\r\n\r\n")))
        assert not wire.has_more(0.2), "nothing may come before the switch"
        wire.send(
            b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
        )
        assert wire.read_exactly(len(SMUGGLED)) == SMUGGLED
        wire.send(b"through")

    with Bot(answer) as bot, start(bot.url, upstream={"reuse": reuse}).connect(trust) as client:
        client.send(HANDSHAKE + SMUGGLED)
        assert client.read_message().status == 101
        assert client.read_exactly(7) == b"through"


# Halves of requests


@pytest.mark.parametrize(
    ("half", "rest"),
    [
        (b"GET /paused HTTP/1.1\r\nHost: localhost\r\n", b"\r\n" + SMUGGLED),
        (post("/paused", f"Content-Length: {len(SMUGGLED)}"), SMUGGLED),
        (post("/paused", "Transfer-Encoding: chunked"), b"0\r\n\r\n" + SMUGGLED),
    ],
    ids=["head", "length", "chunked"],
)
def test_a_request_that_pauses_too_long_is_over(
    start: Start, trust: ssl.SSLContext, echo: Bot, half: bytes, rest: bytes
) -> None:
    front = start(echo.url, timeouts={"head": "500ms", "body": "500ms"})
    with front.connect(trust) as client:
        client.send(half)
        response = client.read_message()
        assert (response.status, response.value("connection")) == (408, "close")
        client.send(rest)
        assert client.read_to_end() == (b"", True)
    assert_victim_is_served(front, trust)
    assert targets(echo)[-2:] == ["/victim", "/victim/2"]
    assert not any(b"smuggled" in request.head + request.body for request in echo.requests)


@REUSES
@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_a_client_that_resets_completes_no_request(
    start: Start, trust: ssl.SSLContext, echo: Bot, reuse: str, framing: str
) -> None:
    front = start(echo.url, upstream={"reuse": reuse})
    with front.connect(trust) as client:
        client.send(post("/half", framing, body=b"5\r\nhello\r\n"))
        echo.wait_for(lambda: echo.connections == 1)
        client.reset()
    echo.wait_for(lambda: bool(echo.requests))
    assert not echo.requests[0].complete
    assert_victim_is_served(front, trust)
    assert targets(echo) == ["/victim", "/victim/2"]
