"""The first look at a TLS client."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botproxy.tls.hello import HELLO_LIMIT, BadHello, Hello, NotTls, offers_only_others, read_hello


def hello_of(*protocols: str) -> bytes:
    """A real ClientHello."""
    context = ssl.create_default_context()
    if protocols:
        context.set_alpn_protocols(list(protocols))
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="bot.example")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def in_records(record: bytes, size: int) -> bytes:
    """The same hello, spread over records of `size` bytes."""
    message = record[5:]
    return b"".join(
        record[:3] + len(piece).to_bytes(2, "big") + piece
        for piece in (message[at : at + size] for at in range(0, len(message), size))
    )


def test_the_protocols_offered_are_found() -> None:
    assert read_hello(hello_of("ftp", "http/1.1")) == Hello((b"ftp", b"http/1.1"))


def test_no_offer_is_an_empty_one() -> None:
    assert read_hello(hello_of()) == Hello(())


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_hello_may_be_spread_over_records(size: int) -> None:
    assert read_hello(in_records(hello_of("h2"), size)) == Hello((b"h2",))


def test_a_hello_that_is_cut_is_not_complete() -> None:
    for whole in (hello_of("h2"), in_records(hello_of("h2"), 50)):
        assert not any(read_hello(whole[:size]) for size in range(len(whole)))


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"G", b"SSH-2.0", b"\x80\x2e\x01\x03\x01"])
def test_another_protocol_is_recognised_by_its_first_bytes(data: bytes) -> None:
    with pytest.raises(NotTls):
        read_hello(data)


def test_an_endless_hello_is_refused_before_it_is_there() -> None:
    with pytest.raises(BadHello):
        read_hello(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff")
    filler = b"\x16\x03\x01\x40\x00" + b"\x01\x00\xff\xf0" + b"\0" * 0x3FFC
    with pytest.raises(BadHello):
        read_hello((filler * 5)[: HELLO_LIMIT + 10])


@pytest.mark.parametrize("size", [1, 3, 100, 16384])
@pytest.mark.parametrize(
    ("protocols", "others"),
    [
        ((), False),
        (("h2",), True),
        (("h2", "http/1.1"), False),
        (("http/1.0",), False),
        (("http/1.10",), True),
    ],
)
def test_who_offers_only_other_protocols_is_known(
    protocols: tuple[str, ...], others: bool, size: int
) -> None:
    assert offers_only_others(in_records(hello_of(*protocols), size)) is others


def test_a_hello_that_is_none_is_left_to_openssl() -> None:
    assert not offers_only_others(b"GET / HTTP/1.1\r\n")
    assert not offers_only_others(b"\x16\x03\x01\x00\x10\x02" + bytes(15))
    assert not offers_only_others(hello_of("h2")[:-20])


@given(st.binary(max_size=80), st.integers(0, 60))
def test_no_bytes_make_it_fail_in_another_way(noise: bytes, at: int) -> None:
    whole = bytearray(hello_of("h2"))
    whole[9 + at : 9 + at + len(noise)] = noise
    try:
        result = read_hello(bytes(whole))
    except (BadHello, NotTls):
        return
    assert result is None or isinstance(result, Hello)
