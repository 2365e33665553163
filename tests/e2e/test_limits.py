"""What one client, or all of them together, may use up, and what happens above it."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.harness import Bot, Proxied, descriptors_of, eventually, limit_descriptors
from tests.wire import Wire, get, post


@pytest.fixture
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


def answer_and_end(wire: Wire) -> tuple[int, bool]:
    """Status of the one answer that comes, and whether the connection ends in order behind it."""
    response = wire.read_message()
    rest, in_order = wire.read_to_end()
    assert rest == b""
    assert response.value("connection") == "close"
    return response.status, in_order


# Heads


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/", "X-Big: " + "x" * 2100), 431),
        (get("/", *(f"X-{number}: 1" for number in range(30))), 431),
        (get("/" + "x" * 1011), 414),
        (get("/" + "x" * 3000), 414),
        (b"GET /" + b"x" * 3000, 414),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Endless: " + b"x" * 3000, 431),
    ],
    ids=["bytes", "fields", "request line", "both", "endless line", "endless field"],
)
def test_a_head_above_a_limit_is_refused(
    start: Start, trust: ssl.SSLContext, bot: Bot, request_: bytes, status: int
) -> None:
    front = start(bot.url, limits={"head": "2KiB", "fields": 20, "request_line": "1KiB"})
    with front.connect(trust) as client:
        client.send(request_)
        assert answer_and_end(client) == (status, True)
    with front.connect(trust) as client:
        fields = [f"X-{number}: {'x' * 20}" for number in range(19)]
        assert client.request(get("/" + "x" * 1010, *fields)).status == 200, "up to the limits it is served"
    assert len(bot.requests) == 1


def test_a_head_that_takes_too_long_is_408(start: Start, trust: ssl.SSLContext, bot: Bot) -> None:
    with start(bot.url, timeouts={"head": "600ms"}).connect(trust) as client:
        assert client.request(get()).status == 200
        started = time.monotonic()
        for byte in get()[:-1]:
            client.send(bytes([byte]))
            if client.has_more(0.1):
                break
        assert 0.5 < time.monotonic() - started < 1.5, "dripping must not prolong it"
        assert answer_and_end(client) == (408, True)


# Bodies


@pytest.mark.parametrize("framing", ["Content-Length: 2000", "Transfer-Encoding: chunked"])
def test_a_body_above_the_limit_is_413(start: Start, trust: ssl.SSLContext, bot: Bot, framing: str) -> None:
    front = start(bot.url, limits={"body": "1000B"})
    with front.connect(trust) as client:
        client.send(post("/", framing, body=b"3e9\r\n" + b"x" * 1001 if "chunked" in framing else b"x" * 10))
        assert answer_and_end(client) == (413, True)
    with front.connect(trust) as client:
        assert client.request(post("/ok", "Content-Length: 1000", body=b"x" * 1000)).status == 200
    complete = [request.target for request in bot.requests if request.complete]
    assert complete == ["/ok"]


def test_an_announced_body_above_the_limit_never_reaches_the_bot(
    start: Start, trust: ssl.SSLContext, bot: Bot
) -> None:
    with start(bot.url, limits={"body": "1000B"}).connect(trust) as client:
        client.send(post("/", "Content-Length: 1001", "Expect: 100-continue"))
        assert answer_and_end(client) == (413, True)
    assert bot.connections == 0


def test_a_body_that_pauses_too_long_is_408(start: Start, trust: ssl.SSLContext, bot: Bot) -> None:
    front = start(bot.url, timeouts={"body": "500ms"})
    with front.connect(trust) as client:
        client.send(post("/", "Content-Length: 100", body=b"begin"))
        started = time.monotonic()
        assert answer_and_end(client) == (408, True)
        assert 0.4 < time.monotonic() - started < 1.5
    assert front.wait_record(status=408)["error"] == "body_timeout"
    assert not any(request.complete for request in bot.requests)


def test_a_body_that_drips_is_408(start: Start, trust: ssl.SSLContext, bot: Bot) -> None:
    front = start(bot.url, timeouts={"body_grace": "500ms"}, limits={"body_rate": "1000B"})
    with front.connect(trust) as client:
        client.send(post("/", "Content-Length: 100000"))
        started = time.monotonic()
        while not client.has_more(0.05):
            client.send(b"x")
            assert time.monotonic() - started < 5, "it may drip for ever"
        assert answer_and_end(client) == (408, True)
    assert front.wait_record(status=408)["error"] == "body_timeout"


# Responses


def test_a_client_that_does_not_read_is_cut_off(start: Start, trust: ssl.SSLContext) -> None:
    ended: list[float] = []

    def behave(wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            while True:
                wire.send(bytes(65536))
        except OSError:
            ended.append(time.monotonic())

    with Bot(behave) as bot:
        front = start(bot.url, timeouts={"write": "500ms"})
        with front.connect(trust) as client:
            started = time.monotonic()
            client.send(get())
            bot.wait_for(lambda: bool(ended))
            assert 0.4 < ended[0] - started < 3
            assert front.wait_record(status=200)["error"] == "slow_reader"
            assert not client.read_to_end()[1]


# Connections


def test_an_idle_connection_is_closed_in_order(start: Start, trust: ssl.SSLContext, bot: Bot) -> None:
    with start(bot.url, timeouts={"keep_alive": "500ms"}).connect(trust) as client:
        assert "connection" not in client.request(get())
        started = time.monotonic()
        assert client.read_to_end() == (b"", True)
        assert 0.4 < time.monotonic() - started < 1.5


def test_the_last_request_of_a_connection_is_announced(start: Start, trust: ssl.SSLContext, bot: Bot) -> None:
    front = start(bot.url, limits={"requests_per_connection": 3})
    with front.connect(trust) as client:
        closing = [client.request(get()).values("connection") for _ in range(3)]
        assert closing == [[], [], ["close"]]
        assert client.read_to_end() == (b"", True)


def test_an_old_connection_is_closed_with_its_next_answer(
    start: Start, trust: ssl.SSLContext, bot: Bot
) -> None:
    limits = {"connection_age": "500ms", "requests_per_connection": 1_000_000}
    with start(bot.url, limits=limits).connect(trust) as client:
        started = time.monotonic()
        served = 0
        while (response := client.request(get())).values("connection") == []:
            served += 1
            assert time.monotonic() - started < 2
        assert served
        assert response.values("connection") == ["close"]
        assert time.monotonic() - started > 0.4  # a tenth earlier or later than configured
        assert client.read_to_end() == (b"", True)


def is_served(front: Proxied, trust: ssl.SSLContext, address: str = "127.0.0.1") -> Wire | None:
    """A connection that was served a request; None when it was closed instead."""
    sock = socket.create_connection((address, front.port), timeout=10)
    try:
        client = Wire(trust.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False))
    except (ConnectionError, ssl.SSLError):
        sock.close()
        return None
    if client.request(get()).status == 200:
        return client
    client.close()
    return None


def hold_open(
    stack: ExitStack, front: Proxied, trust: ssl.SSLContext, wanted: int, address: str = "127.0.0.1"
) -> list[Wire]:
    """As many of `wanted` connections as get through, each served a request."""
    clients = (is_served(front, trust, address) for _ in range(wanted))
    return [stack.enter_context(client) for client in clients if client is not None]


def retry(attempt: Callable[[], Wire | None]) -> Wire:
    """What becomes possible soon, because a connection just ended."""
    deadline = time.monotonic() + 5
    while (client := attempt()) is None:
        assert time.monotonic() < deadline
    return client


def dual(front_port: int) -> dict[str, list[str]]:
    return {"listen": [f"127.0.0.1:{front_port}", f"[::1]:{front_port}"]}


def test_connections_are_limited_in_all_workers_together(
    start: Start, trust: ssl.SSLContext, bot: Bot
) -> None:
    front = start(bot.url, workers=2, limits={"connections": 10})
    with ExitStack() as stack:
        clients = hold_open(stack, front, trust, 25)
        assert len(clients) == 10
        for client in clients[:3]:
            client.close()
        for _ in range(3):
            stack.enter_context(retry(lambda: is_served(front, trust)))
        assert is_served(front, trust) is None
        assert clients[-1].request(get()).status == 200, "those that are in stay"


def test_connections_are_limited_for_each_address(
    start: Start, trust: ssl.SSLContext, bot: Bot, unused_port: int
) -> None:
    front = start(bot.url, workers=2, limits={"connections_per_address": 6}, **dual(unused_port))
    with ExitStack() as stack:
        clients = hold_open(stack, front, trust, 15)
        assert len(clients) == 6
        assert len(hold_open(stack, front, trust, 15, "::1")) == 6, "another address has its own"
        clients[0].close()
        stack.enter_context(retry(lambda: is_served(front, trust)))
        assert is_served(front, trust) is None


def test_a_trusted_proxy_has_no_limit_of_its_own(
    start: Start, trust: ssl.SSLContext, bot: Bot, unused_port: int
) -> None:
    front = start(
        bot.url,
        limits={"connections_per_address": 3},
        trusted_proxies=["127.0.0.1"],
        **dual(unused_port),
    )
    with ExitStack() as stack:
        assert len(hold_open(stack, front, trust, 10)) == 10
        assert len(hold_open(stack, front, trust, 10, "::1")) == 3


# Rates


def statuses(
    front: Proxied, trust: ssl.SSLContext, paths: list[str], address: str = "127.0.0.1"
) -> list[int]:
    """Each on a connection of its own, so that both workers get some."""
    found = []
    for path in paths:
        sock = socket.create_connection((address, front.port), timeout=10)
        with Wire(trust.wrap_socket(sock, server_hostname="localhost")) as client:
            response = client.request(get(path))
            found.append(response.status)
            if response.status == 429:
                assert 1 <= int(response.value("retry-after")) <= 60
    return found


def test_the_rate_of_an_address_is_limited_over_all_workers(
    start: Start, trust: ssl.SSLContext, bot: Bot, unused_port: int
) -> None:
    front = start(
        bot.url, workers=2, limits={"rate": {"per_address": "2/m", "burst": 5}}, **dual(unused_port)
    )
    assert statuses(front, trust, ["/"] * 20) == [200] * 5 + [429] * 15
    assert statuses(front, trust, ["/"] * 6, "::1") == [200] * 5 + [429], "another address has its own"
    assert len(bot.requests) == 10


def test_the_rate_of_all_is_limited(start: Start, trust: ssl.SSLContext, bot: Bot, unused_port: int) -> None:
    front = start(bot.url, workers=2, limits={"rate": {"total": "2/m", "burst": 5}}, **dual(unused_port))
    assert statuses(front, trust, ["/"] * 5) == [200] * 5
    assert statuses(front, trust, ["/"] * 5, "::1") == [429] * 5


def test_a_route_has_a_rate_of_its_own(start: Start, trust: ssl.SSLContext, bot: Bot) -> None:
    front = start(
        bot.url,
        workers=2,
        routes=[{"path": "/slow", "rate": {"per_address": "2/m", "burst": 2}}, {"path": "/"}],
    )
    assert statuses(front, trust, ["/slow"] * 4 + ["/"] * 10) == [200, 200, 429, 429] + [200] * 10


def test_a_request_too_many_does_not_cost_the_connection(
    start: Start, trust: ssl.SSLContext, bot: Bot
) -> None:
    front = start(bot.url, limits={"rate": {"per_address": "20/s", "burst": 1}})
    with front.connect(trust) as client:
        assert client.request(get()).status == 200
        assert client.request(get()).status == 429
        deadline = time.monotonic() + 5
        while client.request(get()).status != 200:
            assert time.monotonic() < deadline, "tokens do not come back"


# Handshakes


def test_a_client_that_stays_silent_is_closed_at_the_handshake_deadline(
    start: Start, trust: ssl.SSLContext, bot: Bot
) -> None:
    front = start(bot.url, timeouts={"handshake": "600ms"})
    for sent in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"):
        with front.tcp() as sock:
            started = time.monotonic()
            sock.sendall(sent)
            with Wire(sock) as wire:
                wire.read_to_end()
            assert 0.5 < time.monotonic() - started < 2


def test_handshakes_above_the_cap_wait_and_are_served_later(
    start: Start, trust: ssl.SSLContext, bot: Bot
) -> None:
    front = start(bot.url, limits={"handshakes": 3}, timeouts={"handshake": "1s"})
    with ExitStack() as stack:
        (worker,) = front.workers()
        verified = Path(front.config["state_dir"]) / "audit.jsonl"
        eventually(lambda: verified.exists() and verified.read_text() != "")  # else our own probe counts
        before = descriptors_of(worker)
        for _ in range(3):
            stack.enter_context(front.tcp())
        eventually(lambda: descriptors_of(worker) >= before + 3)
        started = time.monotonic()
        with front.connect(trust) as client:
            assert client.request(get()).status == 200
        assert time.monotonic() - started > 0.5, "it was not kept waiting"


# Open files


def highest_descriptor(pid: int) -> int:
    return max(int(name.name) for name in Path(f"/proc/{pid}/fd").iterdir())


def test_connections_are_clamped_so_that_descriptors_cannot_run_out(
    start: Start, trust: ssl.SSLContext, bot: Bot
) -> None:
    front = start(bot.url, descriptors=256)
    assert any("limits.connections" in line for line in front.log.lines)
    with ExitStack() as stack:
        clients = hold_open(stack, front, trust, 150)
        assert 30 < len(clients) < 128
        (worker,) = front.workers()
        assert descriptors_of(worker) < 256
        assert all(client.request(get()).status == 200 for client in clients)
    assert not any("descriptors" in line for line in front.log.lines)


def test_when_descriptors_run_out_it_says_so_and_accepts_again(
    start: Start, trust: ssl.SSLContext, bot: Bot
) -> None:
    front = start(bot.url, limits={"connections_per_address": 4000})
    (worker,) = front.workers()
    highest = highest_descriptor(worker)
    with ExitStack() as stack:
        # Bare connections: they are in their handshake, so there are no idle ones to close instead.
        limit_descriptors(worker, highest + 10)
        socks = [stack.enter_context(front.tcp()) for _ in range(40)]
        front.log.wait_for(lambda line: "no file descriptors left" in line)
        for sock in socks[:35]:
            sock.close()
        stack.enter_context(retry(lambda: is_served(front, trust)))
        front.log.wait_for(lambda line: "accepting again" in line)
    lines = [line for line in front.log.lines if "no file descriptors left" in line]
    assert len(lines) < 10, "it may not fill the log"


@pytest.mark.parametrize("begun", [b"", b"\x17"], ids=["silent", "a byte of a record"])
def test_when_descriptors_run_out_idle_connections_make_room(
    start: Start, trust: ssl.SSLContext, bot: Bot, begun: bytes
) -> None:
    front = start(bot.url, upstream={"reuse": "never"})
    (worker,) = front.workers()
    with ExitStack() as stack:
        idle = hold_open(stack, front, trust, 20)
        for client in idle:
            os.write(client.sock.fileno(), begun)
        highest = highest_descriptor(worker)
        limit_descriptors(worker, highest + 2)
        for _ in range(10):
            stack.enter_context(retry(lambda: is_served(front, trust)))
        assert any(client.has_more(0.01) for client in idle), "none was closed"
