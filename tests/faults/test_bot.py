"""Rows of the fault table about the bot: away, slow, broken, restarted, moved, or something else entirely."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certs import Authority
from tests.e2e.conftest import Start
from tests.e2e.test_upstream import bot_context, full_backlog
from tests.faults.apart import Namespaces, apart
from tests.faults.checker import Checker
from tests.faults.conftest import Checked
from tests.faults.elsewhere import BotAt
from tests.harness import Bot, free_port
from tests.wire import OK, PATIENCE, Wire, get, post


def test_row_01(front_of: Start, checked: Checked, trust: ssl.SSLContext, unused_port: int) -> None:
    """The bot refuses connections."""
    front = front_of(f"http://127.0.0.1:{unused_port}", upstream={"hold": "1s"})
    with checked(front) as checker, front.connect(trust) as client:
        answer = client.request(get())
        assert answer.status == 503
        assert int(answer.value("retry-after")) > 0
        assert front.wait_record(status=503)["error"] == "upstream_unreachable"
        client.send(post("/", "Content-Length: 5", body=b"hello"))
        assert not client.has_more(0.3), "it was not held"
        with Bot(port=unused_port) as bot:
            assert client.read_message().status == 200
            assert [request.body for request in bot.requests] == [b"hello"]
            client.close()
        checker.wait_for(25)


def test_row_02(front_of: Start, checked: Checked, trust: ssl.SSLContext) -> None:
    """Nobody answers the SYN."""
    with full_backlog() as port:
        front = front_of(f"http://127.0.0.1:{port}", timeouts={"connect": "1s"})
        with checked(front) as checker, front.connect(trust) as client:
            assert client.request(get()).status == 504
            assert front.wait_record(status=504)["error"] == "connect_timeout"
            checker.wait_for(25)


def test_row_03(front_of: Start, checked: Checked, trust: ssl.SSLContext) -> None:
    """A kept connection ends when the next request comes."""

    def behave(wire: Wire) -> None:
        bot.saw(wire.read_message())
        wire.send(OK)
        bot.saw(wire.read_message())  # and no answer

    with Bot(behave) as bot:
        front = front_of(bot.url)
        with checked(front) as checker:
            for number in range(1, 6):
                with front.connect(trust) as client:
                    assert client.request(get("/first")).status == 200
                    assert client.request(get(f"/again/{number}")).status == 200
                with front.connect(trust) as client:
                    assert client.request(get("/first")).status == 200
                    once = post(f"/once/{number}", "Content-Length: 1", body=b"x")
                    assert client.request(once).status == 502
            checker.wait_for(50)
        targets = [request.target for request in bot.requests if request.head]
        assert [targets.count(f"/again/{number}") for number in range(1, 6)] == [2] * 5
        assert [targets.count(f"/once/{number}") for number in range(1, 6)] == [1] * 5


@pytest.mark.parametrize("end", [Wire.close, Wire.reset], ids=["FIN", "RST"])
def test_row_04(
    front_of: Start, checked: Checked, trust: ssl.SSLContext, end: Callable[[Wire], None]
) -> None:
    """The bot breaks off inside the head of its response."""

    def behave(wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Le")
        end(wire)

    with Bot(behave) as bot:
        front = front_of(bot.url, timeouts={"response": "2s"})
        with checked(front) as checker, front.connect(trust) as client:
            for number in range(1, 11):
                assert client.request(get()).status == 502
                assert bot.connections == number
            checker.wait_for(50)


@pytest.mark.parametrize("end", [Wire.close, Wire.reset], ids=["FIN", "RST"])
def test_row_05(
    front_of: Start, checked: Checked, trust: ssl.SSLContext, end: Callable[[Wire], None]
) -> None:
    """The bot breaks off inside the body of its response."""
    passed_on = threading.Semaphore(0)
    framings = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
    )

    def behave(wire: Wire) -> None:
        wire.send(framings[int(wire.read_message().target[1:])])
        assert passed_on.acquire(timeout=PATIENCE)
        end(wire)

    with Bot(behave) as bot:
        front = front_of(bot.url)
        with checked(front) as checker:
            for number in (0, 1) * 3:
                with front.connect(trust) as client:
                    since = len(front.access.lines)
                    client.send(get(f"/{number}"))
                    client.read_until(b"short")
                    passed_on.release()
                    data, in_order = client.read_to_end()
                    assert not in_order
                    assert not data.endswith(b"0\r\n\r\n")
                    assert front.wait_record(since, path=f"/{number}")["error"] == "upstream_aborted"
            checker.wait_for(50)


def test_row_07(front_of: Start, checked: Checked, trust: ssl.SSLContext) -> None:
    """The bot answers before the upload is over, and sends no more."""

    def behave(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        wire.read_exactly(1000)
        wire.send(b"HTTP/1.1 413 Too much\r\nContent-Length: 8\r\n\r\ntoo much")
        wire.send_end()
        wire.read_to_end()

    with Bot(behave) as bot:
        front = front_of(bot.url, limits={"body": "1GiB"})
        with checked(front) as checker:
            for _ in range(5):
                with front.connect(trust) as client:
                    client.send(post("/early", "Content-Length: 500000000", body=b"x" * 100_000))
                    answer = client.read_message()
                    assert (answer.status, answer.body) == (413, b"too much")
                    assert client.read_to_end()[0] == b""
                bot.wait_for(lambda: bot.open == 0)
            checker.wait_for(50)


def test_row_08(front_of: Start, checked: Checked, trust: ssl.SSLContext) -> None:
    """The bot drips, then stands still; or never begins."""
    tick = threading.Event()

    def behave(wire: Wire) -> None:
        request = wire.read_message()
        if request.target == "/never":
            wire.read_to_end()
            return
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        for _ in range(8):
            tick.wait(0.2)
            wire.send(b"x")
        wire.read_to_end()

    with Bot(behave) as bot:
        front = front_of(bot.url, timeouts={"response": "700ms", "idle": "700ms"})
        with checked(front) as checker:
            with front.connect(trust) as client:
                client.send(get("/drip"))
                client.read_until(b"\r\n\r\n")
                assert client.read_to_end() == (b"x" * 8, False), "longer than `idle` altogether"
                assert front.wait_record(path="/drip")["error"] == "upstream_stalled"
            with front.connect(trust) as client:
                assert client.request(get("/never")).status == 504
                assert front.wait_record(path="/never")["error"] == "response_timeout"
            bot.wait_for(lambda: bot.open == 0)
            checker.wait_for(10)


def test_row_29_loopbacks(front_of: Start, checked: Checked, trust: ssl.SSLContext, unused_port: int) -> None:
    """`localhost` is now one loopback, now the other."""
    front = front_of(f"http://localhost:{unused_port}")
    with checked(front) as checker, front.connect(trust) as client:
        for address in ("127.0.0.1", "::1") * 3:
            with BotAt(address, unused_port):
                assert client.request(get()).body == address.encode()
        checker.wait_for(50)


def test_row_29_names(front_of: Start, checked: Checked, trust: ssl.SSLContext, tmp_path: Path) -> None:
    """The name of the bot gets another address."""
    hosts = tmp_path / "hosts"
    port = free_port()

    def move(address: str) -> None:
        hosts.write_text(f"127.0.0.1 localhost\n{address} bot.test\n")

    def body(namespaces: Namespaces) -> None:
        move("127.0.0.1")
        namespaces.bind(hosts, Path("/etc/hosts"))
        front = front_of(f"http://bot.test:{port}")
        with checked(front) as checker, front.connect(trust) as client:
            for address in ("127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.3"):
                move(address)
                with BotAt(address, port):
                    assert client.request(get()).body == address.encode()
            checker.wait_for(50)

    apart(body, files=True)


def test_row_30(start: Start, checked: Checked, unused_port: int) -> None:
    """The bot restarts on the same port, and connections that were kept to it are dead."""
    front = start(f"http://127.0.0.1:{unused_port}")
    bot = Bot(port=unused_port)
    served = 0
    with checked(front, path="/") as checker:
        for _ in range(3):
            checker.wait_for(25)
            bot.stop_listening()
            served += len(bot.requests)
            checker.grant_between(*cut(bot, checker))
            bot = Bot(port=unused_port)
        checker.wait_for(25)
    bot.close()
    assert served


def cut(bot: Bot, checker: Checker) -> tuple[float, float]:
    """Close the connections of `bot`; the first and the last moment at which a request under way began."""
    before = checker.first_under_way()
    bot.close()
    return before, time.monotonic()


def test_row_31(
    front_of: Start, checked: Checked, trust: ssl.SSLContext, ca: Authority, tmp_path: Path
) -> None:
    """Something else listens where the bot should."""

    def ssh(wire: Wire) -> None:
        wire.send(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n")
        wire.read_some()

    def mail(wire: Wire) -> None:
        wire.read_some()
        wire.send(b"220 mail.example.com ESMTP Postfix\r\n")

    with (
        Bot(ssh) as one,
        Bot(context=bot_context(ca.issue("127.0.0.1"), tmp_path)) as two,
        Bot(mail) as three,
    ):
        for bot in (one, two, three):
            front = front_of(bot.url.replace("https:", "http:"))
            with checked(front) as checker, front.connect(trust) as client:
                for _ in range(3):
                    assert client.request(get()).status == 502
                record = front.wait_record(status=502)
                assert record["error"] in ("bad_upstream_response", "upstream_closed")
                assert record.get("detail") or record["error"] == "upstream_closed"
                checker.wait_for(25)


def test_row_35(start: Start, checked: Checked, unused_port: int, trust: ssl.SSLContext) -> None:
    """After a reboot botproxy is there before the bot."""
    front = start(f"http://127.0.0.1:{unused_port}", admin=None)
    assert front.ask("/-/ready")["ready"]
    came = threading.Event()
    bots: list[Bot] = []

    def come() -> None:
        came.wait(1.0)  # how long the bot takes
        bots.append(Bot(port=unused_port))

    late = threading.Thread(target=come)
    late.start()
    try:
        with checked(front, path="/") as checker:
            checker.wait_for(50)
    finally:
        late.join(PATIENCE)
        bots[0].close()
    absent = start(f"http://127.0.0.1:{free_port()}", upstream={"hold": "0s"})
    with absent.connect(trust) as client:
        answer = client.request(get())
        assert answer.status == 503
        assert int(answer.value("retry-after")) > 0
