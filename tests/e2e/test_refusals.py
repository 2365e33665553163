"""What a client is told, in every situation in which the proxy answers itself."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from botproxy.config import schema
from tests.cli.command import ACCOUNT
from tests.e2e.conftest import Start
from tests.harness import Bot, Proxied, free_port
from tests.wire import PATIENCE, Wire, get, post

NAME = "bot.example.com"
REFUSED = {
    405: f"TRACE /x HTTP/1.1\r\nHost: {NAME}\r\n",
    417: f"GET /x HTTP/1.1\r\nHost: {NAME}\r\nExpect: foo\r\n",
    501: f"POST /x HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: gzip\r\n",
    400: f"GET /x HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: x\r\n",
    431: f"GET /x HTTP/1.1\r\nHost: {NAME}\r\nX: {'a' * 20_000}\r\n",
}


@pytest.fixture(scope="module")
def front(start_once: Start) -> Proxied:
    with Bot() as bot:
        url = bot.url
    return start_once(
        url,
        upstream={"hold": 0},
        plain_listen=[f"127.0.0.1:{free_port()}"],
        headers={"preset": "web", "set": {"X-Mine": "1"}},
    )


@pytest.mark.parametrize("status", REFUSED)
def test_a_refused_head_is_answered_like_any_other_request(
    front: Proxied, trust: ssl.SSLContext, status: int
) -> None:
    """HSTS, our headers, JSON where it is asked for, and a log line that names method and path."""
    seen = len(front.access.lines)
    with front.connect(trust, NAME) as client:
        accept = "Accept: text/html\r\nAccept: application/json\r\n"
        first, rest = REFUSED[status].split("\r\n", 1)
        answer = client.request(f"{first}\r\n{accept}{rest}\r\n".encode())
    assert answer.status == status
    assert answer.value("strict-transport-security") == "max-age=31536000"
    assert answer.value("content-security-policy") == "frame-ancestors 'self'"
    assert answer.value("x-mine") == "1"
    assert answer.value("date").endswith(" GMT")
    told = json.loads(answer.body)["botproxy"]
    record = front.wait_record(since=seen, status=status)
    assert (told["status"], told["request_id"]) == (status, record["id"])
    assert (record["method"], record["path"]) == (first.split(" ")[0], "/x")


def test_plain_http_on_the_tls_port_is_answered_with_our_headers_and_an_id(front: Proxied) -> None:
    with Wire(front.tcp()) as client:
        answer = client.request(get())
    assert answer.status == 400
    assert answer.value("x-mine") == "1"
    assert front.wait_record(error="plain_http")["id"].encode() in answer.body


def test_port_80_speaks_json_as_well(front: Proxied) -> None:
    with Wire(front.tcp(front.plain_port)) as client:
        answer = client.request(b"GET / HTTP/1.1\r\nHost: other.example\r\nAccept: application/json\r\n\r\n")
    assert answer.status == 421
    assert json.loads(answer.body)["botproxy"]["status"] == 421


def test_an_early_answer_reaches_a_client_that_sends_everything_first(
    start: Start, trust: ssl.SSLContext
) -> None:
    def refuse(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        wire.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
        wire.read_to_end()

    with Bot(refuse) as bot:
        front = start(bot.url)
        for size in (5_000_000, 40_000_000):  # the second is above our own limit as well
            client = http.client.HTTPSConnection("localhost", front.port, context=trust, timeout=PATIENCE)
            client.request("POST", "/", body=b"x" * size)
            assert client.getresponse().status == (401 if size < 32 << 20 else 413)
            client.close()


def test_tiny_chunks_without_end_are_refused(start: Start, trust: ssl.SSLContext) -> None:
    with Bot() as bot:
        front = start(bot.url)
        with front.connect(trust) as client:
            client.send(post("/", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b""))
            client.send(b"1\r\nx\r\n" * 12_000)
            assert client.read_message().status == 400


def test_a_large_piece_does_not_pay_for_dripping(start: Start, trust: ssl.SSLContext) -> None:
    with Bot() as bot:
        front = start(bot.url, timeouts={"body_grace": "500ms"}, limits={"body_rate": 1000})
        with front.connect(trust) as client:
            head = post("/", "Content-Length: 2000000").replace(b"Content-Length: 0\r\n", b"")
            client.send(head + b"x" * 1_000_000)
            deadline = time.monotonic() + PATIENCE
            while not client.has_more(0.1):
                assert time.monotonic() < deadline, "the drip goes on"
                client.send(b"x")
            assert client.read_message().status == 408


def test_clients_that_say_nothing_keep_nobody_out(start: Start, trust: ssl.SSLContext) -> None:
    with Bot() as bot:
        front = start(bot.url, limits={"handshakes": 8}, plain_listen=[f"127.0.0.1:{free_port()}"])
        silent = [front.tcp() for _ in range(60)]
        try:
            started = time.monotonic()
            with front.connect(trust) as client:
                assert client.request(get()).status == 200
            with Wire(front.tcp(front.plain_port)) as plain:
                assert plain.request(get()).status in (308, 421)
            # Each second eight of them make room; the handshake timeout of 10 s frees them all at once.
            assert time.monotonic() - started < 9
        finally:
            for sock in silent:
                sock.close()


def test_many_bots_do_not_use_up_the_descriptors(start: Start, trust: ssl.SSLContext) -> None:
    with Bot() as bot:
        names = [f"b{number}" for number in range(8)]
        front = start(
            bot.url,
            descriptors=300,
            upstreams={name: {"url": bot.url} for name in names},
            routes=[{"path": f"/{name}", "upstream": name} for name in names],
        )
        clients = []
        try:
            for _ in range(40):
                try:
                    clients.append(front.connect(trust))
                except (OSError, ssl.SSLError):
                    break  # the cap: refused before anything was begun
            for client in clients:
                for name in names:
                    assert client.request(get(f"/{name}")).status == 200
        finally:
            for client in clients:
                client.close()
        assert len(clients) >= 15
        assert not [line for line in front.log.lines if "descriptors" in line]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_it_serves_although_a_standard_descriptor_is_closed(
    site: schema.Certificate, trust: ssl.SSLContext, tmp_path: Path, closed: str
) -> None:
    port = free_port()
    with Bot() as bot:
        options = f"--cert {site.chain} --key {site.key} --to {bot.url} --listen 127.0.0.1:{port}"
        options += f" --plain-listen off --state-dir {tmp_path} {' '.join(ACCOUNT)}"
        command = f"exec {sys.executable} -m botproxy serve {options} {closed}"
        process = subprocess.Popen(["bash", "-c", command])
        try:
            assert first_answer(process, port, trust) == 200
        finally:
            process.terminate()
            code = process.wait(PATIENCE)
    assert code == 0


def first_answer(process: subprocess.Popen[bytes], port: int, trust: ssl.SSLContext) -> int:
    """Status of the first request that is answered at all."""
    deadline = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None, "it ended"
        client = http.client.HTTPSConnection("127.0.0.1", port, context=trust, timeout=PATIENCE)
        try:
            client.request("GET", "/")
            return client.getresponse().status
        except OSError:  # nobody listens yet (or, on the loopback, the connection met itself)
            assert time.monotonic() < deadline
        finally:
            client.close()
