"""The bot of the demo, spoken to directly."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from botproxy.cli import echo_bot
from tests.cli.command import PATIENCE


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with echo_bot.running() as port:
        yield port


@pytest.fixture
def connection(port: int) -> Iterator[HTTPConnection]:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    yield connection
    connection.close()


def test_it_tells_what_it_saw_of_a_request(connection):
    connection.request("PUT", "/a%20b?c=d", body=b"hello", headers={"X-Thing": "value"})
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/json"
    seen = json.loads(response.read())
    assert (seen["method"], seen["path"], seen["body_bytes"]) == ("PUT", "/a%20b?c=d", 5)
    assert seen["headers"]["X-Thing"] == "value"


def test_it_counts_a_chunked_body(connection):
    connection.request("POST", "/", body=iter([b"abc", b"defg"]), encode_chunked=True)
    assert json.loads(connection.getresponse().read())["body_bytes"] == 7


def test_it_answers_head_without_a_body(connection):
    for _ in range(2):
        connection.request("HEAD", "/")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"")


def test_one_connection_carries_many_requests(connection):
    connection.connect()
    before = connection.sock.getsockname()
    for number in range(3):
        connection.request("GET", f"/{number}")
        assert json.loads(connection.getresponse().read())["path"] == f"/{number}"
    assert connection.sock.getsockname() == before


def test_long_values_are_cut(connection):
    connection.request("GET", "/" + "p" * 2000, headers={"X-Long": "v" * 2000})
    body = connection.getresponse().read()
    assert len(body) < 1500
    assert json.loads(body)["headers"]["X-Long"].endswith("v...")


def test_a_field_that_comes_twice_is_told_twice(port):
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nX-A: 2\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["headers"]["X-A"] == "1, 2"


def test_what_is_not_http_is_hung_up_on(port):
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        sock.sendall(b"\x16\x03\x01\x00\x00garbage\r\n\r\n")
        assert sock.recv(65536) == b""


def test_it_refuses_connections_once_it_is_stopped():
    with echo_bot.running() as port:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def test_it_ends_with_the_process_that_started_it():
    program = (
        "import os\nfrom http.client import HTTPConnection\nfrom botproxy.cli import echo_bot\n"
        "bot = echo_bot.running()\nclient = HTTPConnection('127.0.0.1', bot.__enter__())\n"
        "client.request('GET', '/')\nclient.getresponse().read()\n"
        "print(open(f'/proc/self/task/{os.getpid()}/children').read(), flush=True)\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=PATIENCE,
        check=False,
    )
    bot = int(done.stdout)
    try:
        watched = os.pidfd_open(bot)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([watched], [], [], PATIENCE)
        if not ended:
            signal.pidfd_send_signal(watched, signal.SIGKILL)
        assert ended
    finally:
        os.close(watched)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_it_is_not_root_even_if_the_demo_is():
    before = _children()
    with echo_bot.running() as port:
        [bot] = _children() - before
        client = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        client.request("GET", "/")
        client.getresponse().read()
        client.close()
        assert os.stat(f"/proc/{bot}").st_uid != 0


def _children() -> set[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        return {int(pid) for pid in children.read().split()}
