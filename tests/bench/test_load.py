"""What the load takes for an operation and what not, of a server that lies."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.compare import payload
from bench.compare.cases import BY_NAME
from bench.compare.fleet import LOAD_CORE
from bench.compare.load import Load, Order
from bench.compare.rounds import wrong
from bench.lineage import Lineage
from tests.bench.test_compare import loads

pytestmark = loads
Story = Callable[[ssl.SSLSocket], None]


@contextmanager
def server(lineage: Lineage, chain: Path, story: Story) -> Iterator[int]:
    """The port of one that does `story` with every client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, lineage.privkey)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain = listener.accept()[0]
            except OSError:
                return
            with plain, context.wrap_socket(plain, server_side=True) as tls:
                story(tls)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def path_of(request: bytes) -> str:
    return request.split(b" ")[1].decode("ascii")


def answer(tls: ssl.SSLSocket, *, more: bytes = b"", length: int = 0) -> None:
    body = payload.answer(path_of(tls.recv(65536)))
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) + length}\r\n\r\n".encode("ascii")
    tls.sendall(head + body)
    if more:
        tls.sendall(more)


def good(tls: ssl.SSLSocket) -> None:
    answer(tls)
    tls.unwrap().close()


def behind(tls: ssl.SSLSocket) -> None:
    answer(tls, more=b"JUNKJUNK")
    tls.recv(1)


def longer(tls: ssl.SSLSocket) -> None:
    answer(tls, length=999)
    tls.recv(1)


def reset(tls: ssl.SSLSocket) -> None:
    answer(tls)
    tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def twice(tls: ssl.SSLSocket) -> None:
    answer(tls)
    answer(tls)
    tls.recv(1)


def problem(lineage: Lineage, story: Story, *, case: str = "visit", chain: str = "fullchain") -> str | None:
    """Why one operation is no number, with the certificates of `chain`."""
    with server(lineage, lineage.link(chain), story) as port, Load(LOAD_CORE) as load:
        load.prepare(Order(case, port, str(lineage.fullchain), count=1))
        return wrong(BY_NAME[case], load.go())


def test_a_server_that_does_everything_right_has_a_number(tmp_path):
    assert problem(Lineage(tmp_path), good) is None


@pytest.mark.parametrize(
    ("story", "why"),
    [(behind, "bytes behind the answer"), (longer, "another length"), (reset, "ConnectionResetError")],
)
def test_what_is_wrong_with_an_answer_or_its_end_is_no_number(tmp_path, story, why):
    assert why in str(problem(Lineage(tmp_path), story))


@pytest.mark.parametrize(("case", "story"), [("visit", good), ("keep-alive", twice)])
def test_a_shorter_chain_is_no_number(tmp_path, case, story):
    lineage = Lineage(tmp_path)
    assert problem(lineage, story, case=case) is None
    assert "1 certificates" in str(problem(lineage, story, case=case, chain="cert"))
