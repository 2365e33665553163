"""Where a body ends, piece by piece."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from botproxy.http.body import (
    CHUNK_LINE_LIMIT,
    CHUNKS_AT_ONCE,
    EXTENSIONS_LIMIT,
    LAST_CHUNK,
    BodyError,
    ChunkedDecoder,
    LengthDecoder,
    chunk,
)


def decode(data: bytes, *, step: int | None = None) -> tuple[bytes, bytes, bool]:
    """Content, what lies behind, whether the end was seen; fed in pieces of `step` bytes."""
    decoder = ChunkedDecoder()
    content = b""
    step = step or len(data) or 1
    for at in range(0, len(data), step):
        rest = data[at : at + step]
        while rest and not decoder.done:
            piece, rest = decoder.feed(rest)
            content += piece
        if decoder.done:
            return content, rest + data[at + step :], True
    return content, b"", False


@pytest.mark.parametrize("step", [None, 1, 2, 3, 7])
def test_chunks_are_joined_and_what_follows_is_left_alone(step: int | None) -> None:
    data = b"5\r\nhello\r\n0A\r\n, world!!!\r\n0\r\nX-Trailer: a\r\n\r\nGET / HTTP/1.1"
    assert decode(data, step=step) == (b"hello, world!!!", b"GET / HTTP/1.1", True)


@pytest.mark.parametrize("step", [None, 1])
@pytest.mark.parametrize(
    "data",
    [
        b"5 \r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"-1\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"5_0\r\nhello\r\n0\r\n\r\n",
        b"\r\nhello",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"5\r\nhello\rX0\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\n",
        b"5\r\nhello\r\n0\n\r\n",
        b"10000000000000000\r\n",
        b"5;\r\nhello\r\n0\r\n\r\n",
        b'5;a="\r\nhello\r\n0\r\n\r\n',
        b"5;a=\0\r\nhello\r\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"0\r\nNo Colon\r\n\r\n",
        b"0\r\n Folded: a\r\n\r\n",
        b"0\r\nX: a\nY: b\r\n\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"0\r\nHost: evil\r\n\r\n",
        b"0\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n",
    ],
)
def test_ambiguous_chunked_coding_is_refused(data: bytes, step: int | None) -> None:
    with pytest.raises(BodyError):
        decode(data, step=step)


def test_one_chunk_line_is_bounded() -> None:
    with pytest.raises(BodyError):
        decode(b"5;a=" + b"x" * CHUNK_LINE_LIMIT, step=1000)


def test_extensions_of_one_body_are_bounded_together() -> None:
    drip = b"1;a=" + b"x" * 1000 + b"\r\n.\r\n"
    count = EXTENSIONS_LIMIT // 1000
    assert decode(drip * (count - 1) + LAST_CHUNK)[2]
    with pytest.raises(BodyError):
        decode(drip * (count + 1))


def test_trailers_are_bounded_by_count_and_by_size() -> None:
    with pytest.raises(BodyError):
        decode(b"0\r\n" + b"a: b\r\n" * 101 + b"\r\n")
    with pytest.raises(BodyError):
        decode(b"0\r\n" + (b"a: " + b"b" * 1000 + b"\r\n") * 17 + b"\r\n", step=500)


def test_a_body_that_stops_early_never_counts_as_complete() -> None:
    whole = b"5\r\nhello\r\n0\r\n\r\n"
    for size in range(len(whole)):
        assert not decode(whole[:size])[2]


def test_tiny_chunks_are_taken_a_few_at_a_time() -> None:
    data = b"1\r\nx\r\n" * 5000 + LAST_CHUNK
    content, rest = ChunkedDecoder().feed(data)
    assert 0 < len(content) <= CHUNKS_AT_ONCE
    assert data.endswith(rest)
    assert decode(data + b"GET") == (b"x" * 5000, b"GET", True)


def test_a_length_is_counted_across_pieces() -> None:
    decoder = LengthDecoder(5)
    assert decoder.feed(b"he") == (b"he", b"")
    assert not decoder.done
    assert decoder.feed(b"lloGET") == (b"llo", b"GET")
    assert decoder.done


def test_a_length_of_zero_is_complete_at_once() -> None:
    assert LengthDecoder(0).done


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.integers(1, 9), st.binary(max_size=9))
def test_what_we_frame_we_read_back(pieces: list[bytes], step: int, rest: bytes) -> None:
    data = b"".join(chunk(piece) for piece in pieces) + LAST_CHUNK
    assert decode(data + rest, step=step) == (b"".join(pieces), rest, True)


_noise = st.sampled_from(
    [b"5", b"0", b"a", b"\r\n", b"\n", b"\r", b" ", b";", b"a=b", b'"', b"hello", b"X: y", b":", b"\0", b"g"]
)


@given(st.lists(_noise, max_size=14).map(b"".join))
def test_whatever_we_accept_h11_accepts_with_the_same_meaning(data: bytes) -> None:
    try:
        content, rest, done = decode(data)
    except BodyError:
        return
    if not done:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    theirs = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
        if isinstance(event, h11.Data):
            theirs += bytes(event.data)
    assert theirs == content
    assert connection.trailing_data[0] == rest
