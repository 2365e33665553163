"""Bodies and framing as client and bot see them, in both directions."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.conftest import Start
from tests.harness import Bot, Proxied, forget_peak, free_port, peak_of, rss_of
from tests.wire import OK, Message, Wire, get, post

GIB = 1024**3
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ALLOWED_GROWTH = 8 * 1024**2


@pytest.fixture(scope="module")
def bot_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def front(start_once: Start, bot_port: int) -> Proxied:
    return start_once(f"http://127.0.0.1:{bot_port}", limits={"body": "2GiB"})


@pytest.fixture
def client(front: Proxied, trust: ssl.SSLContext) -> Iterator[Wire]:
    with front.connect(trust) as wire:
        yield wire


BotFor = Callable[..., Bot]


@pytest.fixture
def bot(bot_port: int) -> Iterator[BotFor]:
    """`bot(behaviour)` or `bot(answer)`: the bot of this test; what it finds wrong fails the test."""
    made: list[Bot] = []

    def make(does: Callable[[Wire], None] | bytes = OK) -> Bot:
        one = Bot(port=bot_port)
        one.behave(one.answers(does) if isinstance(does, bytes) else does)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


# Request bodies


def test_a_body_with_content_length_reaches_the_bot_byte_for_byte(bot: BotFor, client: Wire) -> None:
    body = bytes(range(256)) * 300
    behind = bot()
    assert client.request(post("/cl?a=%2f&b=", f"Content-Length: {len(body)}", body=body)).status == 200
    (seen,) = behind.requests
    assert seen.complete
    assert seen.body == body
    assert seen.value("content-length") == str(len(body))
    assert "transfer-encoding" not in seen
    assert seen.target == "/cl?a=%2f&b="


def test_a_chunked_body_is_framed_anew_without_extensions_and_trailers(bot: BotFor, client: Wire) -> None:
    raw: list[bytes] = []

    def behave(wire: Wire) -> None:
        raw.append(wire.read_until(b"0\r\n\r\n"))
        wire.send(OK)

    bot(behave)
    chunks = b'3;name=value;flag\r\nabc\r\n000000A;q="x;y"\r\ndefghijklm\r\n0;last=1\r\nX-Trailer: t\r\n\r\n'
    assert client.request(post("/", "Transfer-Encoding: chunked", body=chunks)).status == 200
    head, _, body = raw[0].partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head.lower()
    assert b"content-length" not in head.lower()
    assert b";" not in body
    assert b"railer" not in raw[0]
    assert b"".join(body.split(b"\r\n")[1::2]) == b"abcdefghijklm"


def test_a_chunked_body_that_drips_in_single_bytes_arrives_whole(bot: BotFor, client: Wire) -> None:
    behind = bot()
    request = post("/", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
    for index in range(len(request)):
        client.send(request[index : index + 1])
    assert client.read_message().status == 200
    assert behind.requests[0].body == b"abcdefg"


def test_a_piece_of_a_body_reaches_the_bot_before_the_next_is_sent(bot: BotFor, client: Wire) -> None:
    steps: list[threading.Event] = [threading.Event() for _ in range(5)]

    def behave(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        for number, step in enumerate(steps):
            assert wire.read_exactly(4) == b"%04d" % number
            step.set()
        wire.send(OK)

    bot(behave)
    client.send(post("/", f"Content-Length: {4 * len(steps)}"))
    for number, step in enumerate(steps):
        client.send(b"%04d" % number)
        assert step.wait(5), "it was held back"
    assert client.read_message().status == 200


def test_an_upload_that_breaks_off_never_looks_complete_to_the_bot(
    bot: BotFor, front: Proxied, trust: ssl.SSLContext
) -> None:
    ends: list[tuple[bytes, bool]] = []
    got_head, ended = threading.Semaphore(0), threading.Semaphore(0)

    def behave(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        got_head.release()
        ends.append(wire.read_to_end())
        ended.release()

    bot(behave)
    cut_short: list[tuple[bytes, Callable[[Wire], None]]] = [
        (post("/cut", "Content-Length: 10", body=b"12345"), Wire.close),
        (post("/cut", "Content-Length: 10", body=b"12345"), Wire.reset),
        (post("/cut", "Transfer-Encoding: chunked", body=b"5\r\n12345\r\n"), Wire.send_end),
        (post("/cut", "Transfer-Encoding: chunked", body=b"5\r\n12345\r\n"), lambda wire: wire.sock.unwrap()),  # type: ignore[attr-defined]
    ]
    for request, leave in cut_short:
        wire = front.connect(trust)
        wire.send(request)
        assert got_head.acquire(timeout=5)
        try:
            leave(wire)
        except OSError:
            pass  # unwrap: botproxy may cut instead of answering our close_notify
        assert ended.acquire(timeout=5)
        wire.close()
    for data, in_order in ends:
        assert not in_order, "the bot could take a request cut short for complete"
        assert not data.endswith(b"0\r\n\r\n")


# Response bodies


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (CHUNKED + b"5;x=y\r\nhello\r\n0\r\nX-T: 1\r\n\r\n", b"hello"),
        (CHUNKED + b"0\r\n\r\n", b""),
    ],
    ids=["length", "length 0", "chunked", "chunked, empty"],
)
def test_a_framed_response_arrives_and_the_connection_is_kept(
    bot: BotFor, client: Wire, answer: bytes, body: bytes
) -> None:
    bot(answer)
    for _ in range(3):
        response = client.request(get())
        assert response.complete
        assert response.body == body
        assert "connection" not in response
        assert b"X-T" not in response.head


def test_an_answer_without_length_is_chunked_for_an_http_1_1_client(bot: BotFor, client: Wire) -> None:
    def behave(wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")

    bot(behave)
    for _ in range(2):  # the client's connection outlives the bot's
        response = client.request(get())
        assert response.complete
        assert response.body == b"until the end"
        assert response.value("transfer-encoding") == "chunked"


def test_an_http_1_0_bot_is_understood(bot: BotFor, client: Wire) -> None:
    def behave(wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.0 200 Fine\r\nContent-Type: text/plain\r\n\r\nold")

    behind = bot(behave)
    for _ in range(2):
        response = client.request(get())
        assert response.start == b"HTTP/1.1 200 OK"
        assert response.body == b"old"
        assert response.complete
    assert behind.connections == 2


def test_an_http_1_0_client_gets_no_chunks_and_an_end_in_order(
    bot: BotFor, front: Proxied, trust: ssl.SSLContext
) -> None:
    behind = bot(CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")
    with front.connect(trust) as client:
        client.send(get(version="1.0"))
        data, in_order = client.read_to_end()
    head, _, body = data.partition(b"\r\n\r\n")
    assert body == b"hello world"
    assert in_order
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert behind.requests[0].start.endswith(b"HTTP/1.1")


def test_an_http_1_0_client_may_keep_its_connection(bot: BotFor, client: Wire) -> None:
    bot()
    for _ in range(2):
        response = client.request(get("/", "Connection: keep-alive", version="1.0"))
        assert response.status == 200
        assert response.value("connection") == "keep-alive"


def test_head_204_and_304_have_no_body_and_the_next_answer_is_right(bot: BotFor, client: Wire) -> None:
    answers = {
        "/head": b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n",
        "/204": b"HTTP/1.1 204 No Content\r\n\r\n",
        "/304": b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 500\r\n\r\n',
        "/after": OK,
    }

    def behave(wire: Wire) -> None:
        while (request := wire.read_message()).head:
            wire.send(answers[request.target])

    bot(behave)
    client.send(get("/head", method="HEAD"))
    head = Message(client.read_until(b"\r\n\r\n"))
    assert head.value("content-length") == "9999"
    none = client.request(get("/204"))
    assert none.status == 204
    assert "content-length" not in none
    assert "transfer-encoding" not in none
    unchanged = client.request(get("/304"))
    assert unchanged.status == 304
    assert unchanged.value("etag") == '"a"'
    after = client.request(get("/after"))
    assert (after.status, after.body) == (200, b"ok")


def test_a_body_behind_head_or_204_is_not_taken_for_the_next_answer(bot: BotFor, client: Wire) -> None:
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"

    def behave(wire: Wire) -> None:
        while (request := wire.read_message()).head:
            if request.target == "/head":
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 43\r\n\r\n" + evil)
            elif request.target == "/204":
                wire.send(b"HTTP/1.1 204 No Content\r\n\r\n" + evil)
            else:
                wire.send(OK)

    bot(behave)
    for path, method in (("/head", "HEAD"), ("/204", "GET")):
        client.send(get(path, method=method))
        client.read_until(b"\r\n\r\n")
        assert client.request(get("/next")).body == b"ok"


def test_the_reason_phrase_is_ours(bot: BotFor, client: Wire) -> None:
    bot(b"HTTP/1.1 418 <script>alert(1)</script>\r\nContent-Length: 0\r\n\r\n")
    phrase = client.request(get()).start.split(b" ", 2)[2]
    assert b"script" not in phrase
    assert phrase


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        CHUNKED + b"5\r\nshort\r\n",
        CHUNKED + b"64\r\nshort",
        CHUNKED + b"5\r\nshort\r\nxyz\r\n",
    ],
    ids=["length", "between chunks", "inside a chunk", "malformed"],
)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("end", [Wire.close, Wire.reset])
def test_a_response_that_breaks_off_is_not_passed_on_as_complete(
    bot: BotFor, client: Wire, answer: bytes, version: str, end: Callable[[Wire], None]
) -> None:
    passed_on = threading.Event()

    def behave(wire: Wire) -> None:
        wire.read_message()
        wire.send(answer)
        passed_on.wait(5)
        end(wire)

    bot(behave)
    client.send(get(version=version))
    head = client.read_until(b"\r\n\r\n")
    passed_on.set()
    if head.startswith(b"HTTP/1.1 502"):
        return  # it broke before any of it had gone out: then the client is told in so many words
    data, in_order = client.read_to_end()
    assert not in_order, "an orderly end makes the body look complete"
    assert not data.endswith(b"0\r\n\r\n")
    assert not head or head.startswith(b"HTTP/1.1 200")


def test_a_close_delimited_response_cut_by_a_reset_is_not_passed_on_as_complete(
    bot: BotFor, front: Proxied, trust: ssl.SSLContext
) -> None:
    passed_on = threading.Semaphore(0)

    def behave(wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\npart")
        passed_on.acquire(timeout=5)
        wire.reset()

    bot(behave)
    for version in ("1.0", "1.1"):
        with front.connect(trust) as client:
            client.send(get(version=version))
            client.read_until(b"part")
            passed_on.release()
            data, in_order = client.read_to_end()
            assert not in_order
            assert not data.endswith(b"0\r\n\r\n")


# One after the other


def test_pipelined_requests_are_served_one_at_a_time_in_order(bot: BotFor, client: Wire) -> None:
    at_once: list[int] = []
    most: list[int] = []

    def behave(wire: Wire) -> None:
        while (request := wire.read_message()).head:
            at_once.append(1)
            most.append(len(at_once))
            assert not wire.has_more(0.02), "the next request came before this one was answered"
            at_once.pop()
            name = request.target.encode()
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name))

    behind = bot(behave)
    bodies = [b"x" * number for number in range(5)]
    client.send(
        b"".join(post(f"/{len(body)}", f"Content-Length: {len(body)}", body=body) for body in bodies)
        + get("/last")
    )
    for number in range(5):
        assert client.read_message().body == b"/%d" % number
    assert client.read_message().body == b"/last"
    assert max(most) == 1
    assert behind.connections == 1


def test_pipelined_requests_behind_connection_close_are_not_served(bot: BotFor, client: Wire) -> None:
    behind = bot()
    behind_close = get("/first", "Connection: close") + get("/second")
    assert client.request(behind_close).value("connection") == "close"
    assert client.read_to_end() == (b"", True)
    assert [request.target for request in behind.requests] == ["/first"]


# Expect: 100-continue


def test_the_body_waits_for_the_bots_100(bot: BotFor, client: Wire) -> None:
    may_continue = threading.Event()
    bodies: list[bytes] = []

    def behave(wire: Wire) -> None:
        head = Message(wire.read_until(b"\r\n\r\n"))
        assert head.value("expect").lower() == "100-continue"
        assert not wire.has_more(0.2), "the body was sent unasked"
        may_continue.set()
        wire.send(b"HTTP/1.1 100 Go\r\nX-Hint: 1\r\n\r\n")
        bodies.append(wire.read_exactly(5))
        wire.send(OK)

    bot(behave)
    client.send(post("/", "Content-Length: 5", "Expect: 100-continue"))
    assert client.read_message().start == b"HTTP/1.1 100 Continue"
    assert may_continue.is_set()
    client.send(b"hello")
    assert client.read_message().status == 200
    assert bodies == [b"hello"]


def test_a_bot_that_repeats_its_100_is_heard_once(bot: BotFor, client: Wire) -> None:
    def behave(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 2)
        wire.read_exactly(5)
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)

    bot(behave)
    client.send(post("/", "Content-Length: 5", "Expect: 100-continue"))
    assert client.read_message().status == 100
    client.send(b"hello")
    assert client.read_message().status == 200


def test_a_bot_that_answers_at_once_gets_no_body(bot: BotFor, client: Wire) -> None:
    rests: list[bytes] = []
    done = threading.Event()

    def behave(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        wire.send(b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno")
        rests.append(wire.read_to_end()[0])
        done.set()

    bot(behave)
    client.send(post("/", "Content-Length: 5", "Expect: 100-continue"))
    response = client.read_message()
    assert response.status == 401, "no 100 may come before it"
    assert response.value("connection") == "close"
    try:
        client.send(b"hello")
    except OSError:
        pass  # botproxy has closed already, as it said
    assert done.wait(5)
    assert rests == [b""]


def test_the_client_gets_its_100_after_a_second_when_the_bot_says_nothing(bot: BotFor, client: Wire) -> None:
    def behave(wire: Wire) -> None:
        while (request := wire.read_message()).head:
            assert request.body == (b"hello" if request.method == "POST" else b"")
            wire.send(OK)

    bot(behave)
    started = time.monotonic()
    client.send(post("/", "Content-Length: 5", "Expect: 100-continue"))
    assert client.read_message().status == 100
    assert 0.9 < time.monotonic() - started < 2
    client.send(b"hello")
    assert client.read_message().status == 200
    assert client.request(get()).status == 200, "the connection goes on"  # and exactly one 100 came


def test_interim_responses_nobody_asked_for_stay_here(bot: BotFor, client: Wire) -> None:
    bot(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK
    )
    assert client.request(get()).status == 200
    assert client.request(post("/", "Content-Length: 1", body=b"x")).status == 200


# Early answers


def test_an_answer_in_the_middle_of_the_upload_reaches_the_client(
    bot: BotFor, front: Proxied, trust: ssl.SSLContext
) -> None:
    def behave(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        wire.read_exactly(1000)
        wire.send(b"HTTP/1.1 413 Too much\r\nContent-Length: 8\r\n\r\ntoo much")
        wire.read_to_end()

    behind = bot(behave)
    with front.connect(trust) as client:
        client.send(post("/early", "Content-Length: 500000000", body=b"x" * 100_000))
        response = client.read_message()
        assert (response.status, response.body) == (413, b"too much")
        assert response.value("connection") == "close"
        assert client.read_to_end()[0] == b""
    behind.wait_for(lambda: behind.open == 0)


# Unbuffered


def test_each_event_arrives_before_the_next_is_sent(bot: BotFor, client: Wire) -> None:
    got = threading.Semaphore(0)

    def behave(wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(20):
            assert got.acquire(timeout=5), "the head or an event was held back"
            wire.send(b"data: %d\n\n" % number)
        assert got.acquire(timeout=5)

    bot(behave)
    client.send(get("/events"))
    client.read_until(b"\r\n\r\n")
    for number in range(20):
        got.release()
        event = b"data: %d\n\n" % number
        assert client.read_until(b"\n\n\r\n") == b"%x\r\n%b\r\n" % (len(event), event)
    got.release()
    assert client.read_until(b"0\r\n\r\n") == b"0\r\n\r\n"


# Backpressure and memory


def test_a_bot_stalls_when_its_client_does_not_read_and_memory_stays(
    bot: BotFor, front: Proxied, trust: ssl.SSLContext
) -> None:
    """A download of 1 GiB; nothing of it is read until the bot can send no more."""
    stalled = threading.Event()
    sent = [0]
    piece = bytes(1024**2)

    def behave(wire: Wire) -> None:
        wire.read_message()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % GIB)
        wire.sock.settimeout(1)
        while sent[0] < GIB:
            try:
                sent[0] += wire.sock.send(piece[: GIB - sent[0]])
            except TimeoutError:
                stalled.set()

    bot(behave)
    (worker,) = front.workers()
    with front.connect(trust) as client:
        before = rss_of(worker)
        forget_peak(worker)
        client.send(get("/download"))
        client.read_until(b"\r\n\r\n")
        assert stalled.wait(15), "the bot could send it all"
        assert sent[0] < 64 * 1024**2
        left = GIB - len(client.buffer)
        target = memoryview(bytearray(1024**2))
        while left:
            count = client.sock.recv_into(target, min(left, len(target)))
            assert count
            left -= count
        assert peak_of(worker) - before <= ALLOWED_GROWTH


def test_an_upload_of_a_gibibyte_does_not_move_memory(
    bot: BotFor, front: Proxied, trust: ssl.SSLContext
) -> None:
    counted: list[int] = []

    def behave(wire: Wire) -> None:
        wire.read_until(b"\r\n\r\n")
        target = memoryview(bytearray(1024**2))
        total = len(wire.buffer)
        while total < GIB and (count := wire.sock.recv_into(target)):
            total += count
        counted.append(total)
        wire.send(OK)

    bot(behave)
    (worker,) = front.workers()
    before = rss_of(worker)
    forget_peak(worker)
    with front.connect(trust) as client:
        client.send(post("/upload", f"Content-Length: {GIB}"))
        piece = bytes(1024**2)
        for _ in range(1024):
            client.send(piece)
        assert client.read_message().status == 200
    assert counted == [GIB]
    assert peak_of(worker) - before <= ALLOWED_GROWTH
