"""What the load takes for an operation and what not, of a server that lies."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

from bench.compare import payload
from bench.compare.cases import BY_NAME
from bench.compare.fleet import LOAD_CORE
from bench.compare.load import Load, Order
from bench.compare.rounds import wrong
from bench.lineage import Lineage
from tests.bench.by_hand import ByHand, listening
from tests.bench.test_compare import loads

pytestmark = loads
Speaker = ssl.SSLSocket | ByHand
Story = Callable[[ssl.SSLSocket], None]


@contextmanager
def server(lineage: Lineage, chain: Path, story: Story) -> Iterator[int]:
    """The port of one that does `story` with every client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, lineage.privkey)

    def serve(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_side=True) as tls:
            story(tls)

    with listening(serve) as port:
        yield port


@contextmanager
def server_by_hand(lineage: Lineage, story: Callable[[ByHand], None], **lies: Any) -> Iterator[int]:
    """The same, which can do what OpenSSL would not."""
    key = load_pem_private_key(lineage.privkey.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    whole = load_pem_x509_certificates(lineage.fullchain.read_bytes())
    made = {"chain": [each.public_bytes(Encoding.DER) for each in whole], **lies}
    with listening(lambda plain: story(ByHand(plain, key=key, **made))) as port:
        yield port


def path_of(request: bytes) -> str:
    if not request:
        raise ConnectionResetError("the client has gone")
    return request.split(b" ")[1].decode("ascii")


def answer(tls: Speaker, *, more: bytes = b"", length: int = 0, fields: str = "") -> None:
    body = payload.answer(path_of(tls.recv(65536)))
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) + length}\r\n{fields}\r\n".encode("ascii")
    tls.sendall(head + body)
    if more:
        tls.sendall(more)


def good(tls: ssl.SSLSocket) -> None:
    answer(tls)
    tls.unwrap().close()


def truncated(tls: ssl.SSLSocket) -> None:
    answer(tls)
    tls.recv(1)


def reset(tls: ssl.SSLSocket) -> None:
    answer(tls)
    breaks_off(tls)


def breaks_off(tls: ssl.SSLSocket) -> None:
    """Once the client has said goodbye."""
    tls.recv(1)
    tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def lies(**how: Any) -> Story:
    def story(tls: ssl.SSLSocket) -> None:
        answer(tls, **how)
        tls.recv(1)

    return story


def twice(tls: ssl.SSLSocket) -> None:
    answer(tls)
    answer(tls)
    tls.recv(1)


def twice_and(more: bytes, at_last: bytes = b"") -> Story:
    def story(tls: ssl.SSLSocket) -> None:
        answer(tls)
        answer(tls, more=more)
        tls.recv(1)
        tls.sendall(at_last)

    return story


def twice_and_a_part(tls: ssl.SSLSocket) -> None:
    twice(tls)
    socket.socket.send(tls, b"\x17\x03\x03\x00\x19half")


def twice_and_reset(tls: ssl.SSLSocket) -> None:
    answer(tls)
    reset(tls)


def leaves_at_once(tls: ssl.SSLSocket) -> None:
    """After what it says is its last answer."""
    answer(tls)
    answer(tls, fields="Connection: close\r\n")
    tls.sendall(b"JUNK")


def downloads(fields: str, *, more: bytes = b"", whole: bool = True) -> Story:
    """After the request that greets."""

    def story(tls: ssl.SSLSocket) -> None:
        answer(tls)
        tls.recv(65536)
        tls.sendall(f"HTTP/1.1 200 OK\r\n{fields}\r\n".encode("ascii"))
        for _ in range(payload.LARGE if whole else 0):
            tls.sendall(payload.BLOCK)
        if more:
            tls.sendall(more)
        tls.recv(1)

    return story


BEHIND = "bytes behind the answer|APPLICATION_DATA_AFTER_CLOSE_NOTIFY"
BROKEN = "ConnectionResetError|not connected"
LENGTH = f"Content-Length: {payload.LARGE_BYTES}\r\n"


def done(port: int, lineage: Lineage, case: str = "visit") -> dict[str, Any]:
    """What came of one operation."""
    with Load(LOAD_CORE) as load:
        load.prepare(Order(case, port, str(lineage.fullchain), count=1))
        return load.go()


def problem(lineage: Lineage, story: Story, *, case: str = "visit", chain: str = "fullchain") -> str | None:
    """Why one operation is no number, with the certificates of `chain`."""
    with server(lineage, lineage.link(chain), story) as port:
        return wrong(BY_NAME[case], done(port, lineage, case))


def test_a_server_that_does_everything_right_has_a_number(tmp_path):
    assert problem(Lineage(tmp_path), good) is None


@pytest.mark.parametrize(
    ("story", "why"),
    [
        (lies(more=b"JUNKJUNK"), "bytes behind the answer"),
        (lies(more=b"hi"), "2 bytes behind the answer"),
        (lies(length=999), "another length"),
        (lies(fields="Content-Length: 5\r\n"), "another length"),
        (lies(fields="Transfer-Encoding: chunked\r\n"), "another length"),
        (lies(fields="Content-Length : 41\r\n"), "another length"),
        (lies(fields=" 1\r\n"), "another length"),
        (reset, BROKEN),
    ],
)
def test_what_is_wrong_with_an_answer_or_its_end_is_no_number(tmp_path, story, why):
    assert re.search(why, str(problem(Lineage(tmp_path), story)))


@pytest.mark.parametrize(
    ("case", "story", "end"),
    [("visit", good, "closed"), ("visit", truncated, "truncated"), ("keep-alive", twice, "truncated")],
)
def test_how_connections_ended_is_counted(tmp_path, case, story, end):
    lineage = Lineage(tmp_path)
    with server(lineage, lineage.fullchain, story) as port:
        seen = done(port, lineage, case)
    assert wrong(BY_NAME[case], seen) is None
    assert seen["ends"] == {end: 1}


@pytest.mark.parametrize(
    ("case", "alert"), [("visit", b"\x02\x50"), ("visit", b"\x01\x5a"), ("keep-alive", b"\x02\x50")]
)
@pytest.mark.parametrize("first", [True, False])
def test_an_alert_behind_the_answer_is_no_number(tmp_path, case, alert, first):
    lineage = Lineage(tmp_path)

    def story(tls: ByHand) -> None:
        for _ in range(1 if case == "visit" else 2):
            answer(tls)
        if not first:
            tls.recv(1)
        tls.alert(alert)
        if first:
            tls.recv(1)

    with server_by_hand(lineage, story) as port:
        found = str(wrong(BY_NAME[case], done(port, lineage, case)))
    assert "alert" in found.lower() or "an end before ours" in found


@pytest.mark.parametrize(
    ("said", "why"),
    [(b"HTTP/1.1 400 Bad request\r\n\r\n", None), (b"HTTP/1.1 200 OK\r\n\r\n", "19 bytes behind")],
)
def test_who_asks_nothing_may_be_told_so(tmp_path, said, why):
    lineage = Lineage(tmp_path)

    def story(tls: ssl.SSLSocket) -> None:
        tls.recv(1)
        tls.sendall(said)

    found = problem(lineage, story, case="tls13-ecdsa")
    assert found is None if why is None else why in str(found)


@pytest.mark.parametrize(
    ("story", "why"),
    [
        (twice_and(b"J" * 1100), BEHIND),
        (twice_and_reset, BROKEN),
        (twice_and(b"", at_last=b"J" * 1100), "1100 bytes behind the answer"),
        (twice_and_a_part, "a part of a record behind the answer|UNEXPECTED_EOF"),
        (leaves_at_once, "bytes behind the answer"),
    ],
)
def test_the_end_of_a_kept_connection_is_looked_at(tmp_path, story, why):
    assert re.search(why, str(problem(Lineage(tmp_path), story, case="keep-alive")))


@pytest.mark.parametrize(
    ("story", "why"),
    [
        (downloads(LENGTH), None),
        (downloads(LENGTH, more=b"J" * 1000), BEHIND),
        (downloads("Content-Length: 5\r\n" + LENGTH, whole=False), "another length"),
        (downloads(LENGTH + LENGTH, whole=False), "another length"),
        (downloads(LENGTH + "Transfer-Encoding: chunked\r\n", whole=False), "another length"),
        (downloads("", whole=False), "another length"),
    ],
)
def test_a_download_is_as_long_as_its_head_says_once(tmp_path, story, why):
    found = problem(Lineage(tmp_path), story, case="download")
    assert found is None if why is None else re.search(why, str(found))


def test_who_closes_what_is_to_be_idle_has_no_number(tmp_path):
    lineage = Lineage(tmp_path)
    with server(lineage, lineage.fullchain, answer) as port, Load(LOAD_CORE) as load:
        assert not load.prepare(Order("visit", port, str(lineage.fullchain), idle=1))["errors"]
        assert "did not stay idle" in load.go()["errors"][0]


@pytest.mark.parametrize("second", [b"", b"another"])
def test_the_whole_chain_must_be_the_one_of_the_file(tmp_path, second):
    lineage = Lineage(tmp_path)
    leaf = load_pem_x509_certificates(lineage.fullchain.read_bytes())[0].public_bytes(Encoding.DER)
    with server_by_hand(lineage, answer, chain=[leaf, second]) as port:
        assert "another chain" in str(wrong(BY_NAME["visit"], done(port, lineage)))


@pytest.mark.parametrize("case", ["visit", "tls12-ecdsa", "keep-alive"])
def test_another_intermediate_is_no_number(tmp_path, case):
    lineage = Lineage(tmp_path)
    lineage.link("cert").write_bytes(lineage.link("cert").read_bytes() + lineage.ca.read_bytes())
    assert "another chain" in str(problem(lineage, twice, case=case, chain="cert"))


@pytest.mark.parametrize(("case", "story"), [("visit", good), ("keep-alive", twice)])
def test_a_shorter_chain_is_no_number(tmp_path, case, story):
    lineage = Lineage(tmp_path)
    assert problem(lineage, story, case=case) is None
    assert "1 certificates" in str(problem(lineage, story, case=case, chain="cert"))
