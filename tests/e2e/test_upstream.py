"""The way to the bot: addresses, reuse, waiting for it, its timeouts, and clients that leave meanwhile."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import certs
from tests.certs import Authority, Issued
from tests.e2e.conftest import Start
from tests.harness import Bot, Proxied, free_port
from tests.wire import OK, HelloFor, Wire, get, post

PROMPTLY = 1.3
"""Seconds; the promise is one, the rest is for a busy machine."""


# Addresses


def test_a_bot_behind_a_unix_socket_is_reached(
    start: Start, trust: ssl.SSLContext, open_directory: Path
) -> None:
    path = open_directory / "bot.sock"
    with Bot(path=path) as bot:
        path.chmod(0o666)
        with start(bot.url).connect(trust) as client:
            assert client.request(get("/unix")).status == 200
        assert bot.requests[0].value("host") == "localhost"


def test_the_proxy_starts_without_the_bot(start: Start, trust: ssl.SSLContext) -> None:
    port = free_port()
    front = start(f"http://127.0.0.1:{port}")
    with Bot(port=port), front.connect(trust) as client:
        assert client.request(get()).status == 200


def bot_context(issued: Issued, directory: Path) -> ssl.SSLContext:
    files = issued.write(directory, "upstream")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.chain, files.key)
    return context


def ca_file(ca: Authority, directory: Path) -> str:
    file = directory / "ca.pem"
    file.write_bytes(certs.pem(ca.root or ca.certificate))
    return str(file)


def test_an_https_bot_is_verified_and_served(
    start: Start, trust: ssl.SSLContext, ca: Authority, open_directory: Path
) -> None:
    context = bot_context(ca.issue("127.0.0.1"), open_directory)
    with Bot(context=context) as bot:
        front = start(bot.url, upstream={"ca": ca_file(ca, open_directory)})
        with front.connect(trust) as client:
            assert client.request(get()).status == 200
            assert client.request(post("/", "Content-Length: 3", body=b"abc")).status == 200
        assert bot.requests[1].body == b"abc"
        assert bot.connections == 1


@pytest.mark.parametrize("wrong", ["authority", "name", "expired"])
def test_an_https_bot_that_does_not_verify_gets_nothing(
    start: Start, trust: ssl.SSLContext, ca: Authority, open_directory: Path, wrong: str
) -> None:
    issued = {
        "authority": lambda: certs.root().issue("127.0.0.1"),
        "name": lambda: ca.issue("another.example.com", "127.0.0.2"),
        "expired": lambda: ca.issue("127.0.0.1", not_after=certs.NOW - certs.DAY / 2),
    }[wrong]()
    with Bot(context=bot_context(issued, open_directory)) as bot:
        front = start(bot.url, upstream={"ca": ca_file(ca, open_directory)})
        with front.connect(trust) as client:
            started = time.monotonic()
            assert client.request(get()).status == 502
            assert time.monotonic() - started < 5, "a certificate that does not fit is no absence to wait out"
        assert front.wait_record(status=502)["error"] == "upstream_tls"
        assert not bot.requests


def test_an_https_bot_that_speaks_plain_http_gets_no_request(
    start: Start, trust: ssl.SSLContext, ca: Authority, open_directory: Path
) -> None:
    seen: list[bytes] = []

    def behave(wire: Wire) -> None:
        seen.append(wire.read_some())
        wire.send(OK)

    with Bot(behave) as bot:
        front = start(bot.url.replace("http:", "https:"), upstream={"ca": ca_file(ca, open_directory)})
        with front.connect(trust) as client:
            assert client.request(get("/canary")).status == 502
    assert seen
    assert not any(b"canary" in data for data in seen)


# Reuse


@pytest.mark.parametrize(("reuse", "connections"), [("client", 2), ("never", 6), ("shared", 1)])
def test_reuse_decides_how_many_connections_the_bot_sees(
    start: Start, trust: ssl.SSLContext, reuse: str, connections: int
) -> None:
    with Bot() as bot:
        front = start(bot.url, upstream={"reuse": reuse})
        for _ in range(2):
            with front.connect(trust) as client:
                for _ in range(3):
                    assert client.request(get()).status == 200
        assert bot.connections == connections
        closing = ["close" in request.values("connection") for request in bot.requests]
        assert closing == [reuse == "never"] * 6


def test_a_bot_that_says_close_is_believed(start: Start, trust: ssl.SSLContext) -> None:
    """It does not close itself, so only what it said keeps the connection from being used again."""
    with Bot() as bot:
        bot.behave(bot.answers(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")))
        with start(bot.url).connect(trust) as client:
            for _ in range(2):
                response = client.request(get())
                assert response.status == 200
                assert "connection" not in response
        assert bot.connections == 2


def test_a_kept_connection_that_the_bot_closed_costs_no_request(start: Start, trust: ssl.SSLContext) -> None:
    def behave(wire: Wire) -> None:
        bot.saw(wire.read_message())
        wire.send(OK)

    with Bot(behave) as bot, start(bot.url).connect(trust) as client:
        for number in range(5):
            assert client.request(post("/", "Content-Length: 1", body=b"x")).status == 200
            bot.wait_for(lambda: bot.open == 0)
            assert len(bot.requests) == number + 1


def test_a_kept_connection_on_which_the_bot_spoke_unasked_is_not_used(
    start: Start, trust: ssl.SSLContext
) -> None:
    answered, spoken = threading.Semaphore(0), threading.Semaphore(0)

    def behave(wire: Wire) -> None:
        wire.read_message()
        wire.send(OK)
        answered.acquire(timeout=5)
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL")
        spoken.release()
        assert not wire.read_to_end()[0]

    with Bot(behave) as bot, start(bot.url).connect(trust) as client:
        for _ in range(3):
            assert client.request(get()).body == b"ok"
            answered.release()
            assert spoken.acquire(timeout=5)
        assert bot.connections == 3


@pytest.mark.parametrize(
    ("server", "configured", "at_most"), [("uvicorn", "600ms", 1.0), ("gunicorn/23.0", "4s", 2.0)]
)
def test_an_idle_connection_is_closed_by_us_before_the_bot_would(
    start: Start, trust: ssl.SSLContext, server: str, configured: str, at_most: float
) -> None:
    idle: list[float] = []

    def behave(wire: Wire) -> None:
        bot.saw(wire.read_message())
        wire.send(b"HTTP/1.1 200 OK\r\nServer: %b\r\nContent-Length: 0\r\n\r\n" % server.encode())
        answered = time.monotonic()
        assert wire.read_to_end() == (b"", True)
        idle.append(time.monotonic() - answered)

    with Bot(behave) as bot:
        front = start(bot.url, timeouts={"upstream_keep_alive": configured})
        with front.connect(trust) as client:
            assert client.request(get()).status == 200
            bot.wait_for(lambda: bot.open == 0)
            assert client.request(get()).status == 200, "the client's connection goes on"
        assert 0.5 < idle[0] < at_most


# The bot is away


@pytest.fixture
def absent() -> int:
    """The port of a bot that is not there."""
    return free_port()


def test_a_request_is_held_until_the_bot_comes(start: Start, trust: ssl.SSLContext, absent: int) -> None:
    front = start(f"http://127.0.0.1:{absent}")
    with front.connect(trust) as client:
        client.send(get("/held"))
        assert not client.has_more(0.3), "it was not held"
        with Bot(port=absent):
            started = time.monotonic()
            assert client.read_message().status == 200
            assert time.monotonic() - started < 1
            client.close()


def test_held_posts_are_delivered_exactly_once(start: Start, trust: ssl.SSLContext, absent: int) -> None:
    front = start(f"http://127.0.0.1:{absent}")
    with ExitStack() as stack:
        clients = [stack.enter_context(front.connect(trust)) for _ in range(30)]
        for number, client in enumerate(clients):
            client.send(post(f"/{number}", "Content-Length: 100000", body=b"%05d" % number * 20_000))
        assert not clients[0].has_more(0.3)
        with Bot(port=absent) as bot:
            assert [client.read_message().status for client in clients] == [200] * len(clients)
            for client in clients:
                client.close()
            seen = {request.target: request.body for request in bot.requests}
            assert len(bot.requests) == len(clients)
            assert seen == {f"/{number}": b"%05d" % number * 20_000 for number in range(len(clients))}


def test_a_hold_that_ends_is_503_with_retry_after(start: Start, trust: ssl.SSLContext, absent: int) -> None:
    front = start(f"http://127.0.0.1:{absent}", upstream={"hold": "600ms"})
    with front.connect(trust) as client:
        started = time.monotonic()
        response = client.request(get())
        assert 0.5 < time.monotonic() - started < 2
        assert response.status == 503
        assert int(response.value("retry-after")) > 0
        assert client.request(get()).status == 503, "the connection goes on"
    assert front.wait_record(status=503)["error"] == "upstream_unreachable"


def test_without_hold_an_absent_bot_is_503_at_once(start: Start, trust: ssl.SSLContext, absent: int) -> None:
    with start(f"http://127.0.0.1:{absent}", upstream={"hold": "0s"}).connect(trust) as client:
        started = time.monotonic()
        assert client.request(get()).status == 503
        assert time.monotonic() - started < 0.5


def test_the_waiting_room_is_bounded(start: Start, trust: ssl.SSLContext, absent: int) -> None:
    front = start(f"http://127.0.0.1:{absent}", limits={"waiting": 2})
    with ExitStack() as stack:
        clients = [stack.enter_context(front.connect(trust)) for _ in range(3)]
        for client in clients[:2]:
            client.send(get())
        assert not clients[0].has_more(0.2)
        assert clients[2].request(get()).status == 503
        assert front.wait_record(status=503)["error"] == "waiting_room_full"


# Its timeouts


@contextmanager
def full_backlog() -> Iterator[int]:
    """A port whose queue is full, so that the kernel answers nobody."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield int(listener.getsockname()[1])


def test_a_bot_that_does_not_accept_in_time_is_504(start: Start, trust: ssl.SSLContext) -> None:
    with full_backlog() as port:
        front = start(f"http://127.0.0.1:{port}", timeouts={"connect": "500ms"})
        with front.connect(trust) as client:
            started = time.monotonic()
            assert client.request(get()).status == 504
            assert 0.4 < time.monotonic() - started < 2
        assert front.wait_record(status=504)["error"] == "connect_timeout"


def silent(wire: Wire) -> None:
    wire.read_message()
    wire.read_to_end()


def test_a_bot_that_does_not_answer_in_time_is_504(start: Start, trust: ssl.SSLContext) -> None:
    with Bot(silent) as bot:
        front = start(bot.url, timeouts={"response": "500ms"})
        with front.connect(trust) as client:
            started = time.monotonic()
            assert client.request(get()).status == 504
            assert 0.4 < time.monotonic() - started < 2
            assert client.request(post("/", "Content-Length: 3", body=b"abc")).status == 504
        assert front.wait_record(status=504)["error"] == "response_timeout"
        bot.wait_for(lambda: bot.open == 0)


def test_the_response_timeout_counts_from_the_end_of_the_upload(start: Start, trust: ssl.SSLContext) -> None:
    with Bot() as bot, start(bot.url, timeouts={"response": "500ms"}).connect(trust) as client:
        client.send(post("/", "Content-Length: 4"))
        for _ in range(4):
            assert not client.has_more(0.3), "the upload was cut"
            client.send(b"x")
        assert client.read_message().status == 200


def test_a_bot_that_stops_inside_its_body_is_cut_off(start: Start, trust: ssl.SSLContext) -> None:
    def behave(wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin")
        wire.read_to_end()

    with Bot(behave) as bot:
        front = start(bot.url, timeouts={"idle": "500ms"})
        with front.connect(trust) as client:
            client.send(get())
            client.read_until(b"begin")
            started = time.monotonic()
            assert client.read_to_end() == (b"", False)
            assert time.monotonic() - started < 2
        assert front.wait_record(status=200)["error"] == "upstream_stalled"
        bot.wait_for(lambda: bot.open == 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\nb: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 11 + OK,
    ],
    ids=["nothing", "half a head", "nonsense", "two lengths", "CL and TE", "bare LF", "long", "interims"],
)
def test_a_bot_without_a_valid_answer_is_502(start: Start, trust: ssl.SSLContext, answer: bytes) -> None:
    def behave(wire: Wire) -> None:
        wire.read_message()
        wire.send(answer)

    with Bot(behave) as bot, start(bot.url).connect(trust) as client:
        for _ in range(2):
            assert client.request(get()).status == 502
        assert bot.connections == 2, "each request is sent once, on a connection of its own"


# Errors, as the client reads them


CANARY = "c4n4ry"


@pytest.mark.parametrize("accept", [None, "application/json"])
def test_error_bodies_name_id_and_key_and_echo_nothing(
    start: Start, trust: ssl.SSLContext, absent: int, accept: str | None
) -> None:
    def behave(wire: Wire) -> None:
        wire.read_message()
        wire.send(f"HTTP/1.1 {CANARY}\r\n\r\n".encode())

    big = f"X-Big: {CANARY}{'x' * 20_000}"
    with Bot(behave) as bot:
        front = start(
            bot.url,
            upstreams={"bot": {"url": bot.url}, "away": {"url": f"http://127.0.0.1:{absent}", "hold": "0s"}},
            routes=[
                {"path": "/bot", "upstream": "bot"},
                {"path": "/away", "upstream": "away"},
            ],
            limits={"body": "1KiB"},
        )
        fields = [f"X-Secret: {CANARY}", f"Cookie: {CANARY}", *([f"Accept: {accept}"] if accept else [])]
        cases: list[tuple[int, str | None, bytes]] = [
            (502, "upstreams", get(f"/bot/{CANARY}?{CANARY}", *fields)),
            (503, "upstreams.*.hold", get(f"/away/{CANARY}?{CANARY}", *fields)),
            (404, "routes", get(f"/{CANARY}?{CANARY}", *fields)),
            (413, "limits.body", post(f"/bot/{CANARY}", *fields, "Content-Length: 2000", body=b"c4n4ry" * 9)),
            (431, "limits.head", get(f"/{CANARY}", *fields, big)),
            (414, "limits.request_line", get(f"/{CANARY}" + "x" * 9000, *fields)),
            (400, None, get(f"/{CANARY}", *fields, f"{CANARY} : x")),
            (405, None, get(f"/{CANARY}", *fields, method="TRACE")),
            (417, None, get(f"/{CANARY}", *fields, f"Expect: {CANARY}")),
        ]
        for status, key, request in cases:
            with front.connect(trust) as client:
                response = client.request(request)
            assert response.status == status
            body = response.body.decode()
            assert len(body) < 500
            assert CANARY not in body
            assert CANARY.encode() not in response.head
            assert key is None or key in body
            found = re.search(r"request[ _]id\"?:? \"?([A-Za-z0-9._-]+)", body)
            assert found, body
            assert found[1] in front.wait_record(status=status).values()
            if accept and status in (414, 431) and response.body[:1] != b"{":
                continue  # the wish may stand behind the point at which the head was refused
            if accept:
                assert response.value("content-type") == "application/json"
                assert json.loads(body)["botproxy"]["status"] == status
            else:
                assert response.value("content-type").startswith("text/plain")


# The client leaves


def _close_notify(wire: Wire) -> None:
    wire.sock.settimeout(0)
    try:
        assert isinstance(wire.sock, ssl.SSLSocket)
        wire.sock.unwrap()
    except ssl.SSLWantReadError:
        pass  # ours is sent
    wire.close()


LEAVING = [_close_notify, Wire.close, Wire.send_end, Wire.reset]
leaving = pytest.mark.parametrize("leave", LEAVING, ids=["close_notify", "close", "fin", "reset"])


@pytest.fixture(scope="module")
def bot_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def front(start_once: Start, bot_port: int) -> Proxied:
    return start_once(f"http://127.0.0.1:{bot_port}")


def _ended_after(bot: Bot, leave: Callable[[], None]) -> float:
    started = time.monotonic()
    leave()
    bot.wait_for(lambda: bot.open == 0)
    return time.monotonic() - started


@leaving
def test_a_client_that_leaves_before_the_head_ends_the_request(
    front: Proxied, bot_port: int, trust: ssl.SSLContext, leave: Callable[[Wire], None]
) -> None:
    with Bot(port=bot_port) as bot:

        def behave(wire: Wire) -> None:
            bot.saw(wire.read_message())
            wire.read_to_end()

        bot.behave(behave)
        since = len(front.access.lines)
        with front.connect(trust) as client:
            client.send(get("/head"))
            bot.wait_for(lambda: bool(bot.requests))
            assert _ended_after(bot, lambda: leave(client)) < PROMPTLY
        assert front.wait_record(since, status=499, path="/head")["error"] == "client_gone"


@leaving
def test_a_client_that_leaves_an_event_stream_ends_it(
    front: Proxied, bot_port: int, trust: ssl.SSLContext, leave: Callable[[Wire], None]
) -> None:
    with Bot(port=bot_port) as bot:

        def behave(wire: Wire) -> None:
            wire.read_message()
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
            wire.read_to_end()

        bot.behave(behave)
        with front.connect(trust) as client:
            client.send(get("/events"))
            client.read_until(b"data: 1")
            assert _ended_after(bot, lambda: leave(client)) < PROMPTLY


def test_a_client_that_resets_while_its_upload_is_stuck_ends_it(
    front: Proxied, bot_port: int, trust: ssl.SSLContext
) -> None:
    """The bot does not read, so botproxy has stopped reading from the client.

    An orderly end could not be seen: the kernel of the client keeps it behind the bytes not taken.
    """
    with Bot(port=bot_port) as bot:
        stuck, gone = threading.Event(), threading.Event()

        def behave(wire: Wire) -> None:
            wire.read_until(b"\r\n\r\n")
            bot.wait_for(stuck.is_set)
            # Not reading, the end can only be seen as an error of the socket: what botproxy sends is a reset.
            while not gone.is_set():
                if wire.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    return
                gone.wait(0.01)

        bot.behave(behave)
        with front.connect(trust) as client:
            client.send(post("/upload", "Content-Length: 30000000"))
            client.sock.settimeout(0.3)
            try:
                while True:
                    client.sock.send(bytes(16384))
            except TimeoutError:
                stuck.set()
            try:
                assert _ended_after(bot, client.reset) < PROMPTLY
            finally:
                gone.set()


@leaving
def test_a_client_that_leaves_while_held_is_forgotten(
    front: Proxied, bot_port: int, trust: ssl.SSLContext, leave: Callable[[Wire], None]
) -> None:
    since = len(front.access.lines)
    with front.connect(trust) as client:
        client.send(get("/held"))
        assert not client.has_more(0.3)
        started = time.monotonic()
        leave(client)
        front.wait_record(since, status=499, path="/held")
        assert time.monotonic() - started < PROMPTLY
    with Bot(port=bot_port) as bot:
        with front.connect(trust) as another:
            assert another.request(get("/another")).status == 200
        assert [request.target for request in bot.requests] == ["/another"]


def test_a_client_that_finished_sending_still_gets_its_answer(
    front: Proxied, bot_port: int, ca: Authority
) -> None:
    """close_notify is the end of one direction only (RFC 8446 6.1)."""
    with Bot(port=bot_port):
        client = HelloFor(ca.trust())
        with front.tcp() as sock:
            sock.sendall(client.data)
            client.finish(sock)
            client.tls.write(get("/half"))
            assert client.half_close(sock) > 100
        front.wait_record(path="/half", status=200)
