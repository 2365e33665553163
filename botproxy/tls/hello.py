"""What a TLS ClientHello says, read beside OpenSSL.

Python's ssl completes a handshake with a client that offers only protocols we
do not speak (RFC 7301 3.2 wants it refused), and sends nothing to a client that
speaks plain HTTP. Both need a look at the first bytes. The look is shallow: only
the list of application protocols is read, everything else is OpenSSL's.
"""

from __future__ import annotations

from dataclasses import dataclass

HELLO_LIMIT = 64 * 1024
"""Bytes of a hello, records included, and of all that a client may send before its handshake is complete.
Browsers with post-quantum key shares send about 2 KiB."""
OUR_PROTOCOLS = frozenset({b"http/1.1", b"http/1.0"})
_HANDSHAKE_RECORD = 0x16
_CLIENT_HELLO = 1
_ALPN = 16


@dataclass(frozen=True, slots=True)
class Hello:
    """A complete ClientHello."""

    protocols: tuple[bytes, ...]
    """ALPN names offered, in order; empty when the extension is absent."""


class NotTls(Exception):
    """The first bytes are no TLS handshake record."""


class BadHello(Exception):
    """A handshake record whose hello is cut, too long or malformed."""


def is_handshake(data: bytes) -> bool:
    """Whether what a client sends first is TLS; `data` is not empty."""
    return data[0] == _HANDSHAKE_RECORD


def offers_only_others(data: bytes) -> bool:
    """Whether the hello at the start of `data` offers application protocols, and none of ours.

    False for a hello that OpenSSL refuses by itself.
    """
    in_one_record = int.from_bytes(data[3:5], "big") == 4 + int.from_bytes(data[6:9], "big")
    if in_one_record and (b"\0\x10" not in data or b"\x08http/1.1" in data):
        return False  # it holds no such extension, or one of ours: as nearly always
    try:
        hello = read_hello(data)
    except (NotTls, BadHello):
        return False
    return hello is not None and bool(hello.protocols) and OUR_PROTOCOLS.isdisjoint(hello.protocols)


def read_hello(data: bytes) -> Hello | None:
    """The hello at the start of `data`; None when it is not complete.

    Raises NotTls for another protocol, BadHello for a hello that OpenSSL would refuse as well.
    RFC 8446 4.1.2 and 5.1; a hello may be spread over several records.
    """
    message = bytearray()
    at = 0
    while True:
        if len(data) < at + 5:
            if data and data[0] != _HANDSHAKE_RECORD:
                raise NotTls
            return None
        if data[at] != _HANDSHAKE_RECORD or data[at + 1] != 3:
            raise NotTls if at == 0 else BadHello("a foreign record inside the hello")
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        if length == 0:
            raise BadHello("an empty record inside the hello")
        if at + 5 + length > HELLO_LIMIT:
            raise BadHello("the hello is too long")
        if len(data) < at + 5 + length:
            return None
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
        if len(message) < 4:
            continue
        if message[0] != _CLIENT_HELLO:
            raise BadHello("the first message is no ClientHello")
        size = 4 + int.from_bytes(message[1:4], "big")
        if size > HELLO_LIMIT:
            raise BadHello("the hello is too long")
        if len(message) >= size:
            return _parse(bytes(message[4:size]))


def _parse(body: bytes) -> Hello:
    try:
        at = 34  # version and random
        at += 1 + body[at]  # session id
        at += 2 + int.from_bytes(body[at : at + 2], "big")  # cipher suites
        at += 1 + body[at]  # compression methods
        end = at + 2 + int.from_bytes(body[at : at + 2], "big")
        at += 2
        while at + 4 <= min(end, len(body)):
            kind = int.from_bytes(body[at : at + 2], "big")
            size = int.from_bytes(body[at + 2 : at + 4], "big")
            if kind == _ALPN:
                return Hello(_protocols(body[at + 4 : at + 4 + size]))
            at += 4 + size
    except IndexError:
        raise BadHello("the hello ends too early") from None
    return Hello(())


def _protocols(extension: bytes) -> tuple[bytes, ...]:
    names = []
    at = 2
    while at < len(extension):
        size = extension[at]
        names.append(extension[at + 1 : at + 1 + size])
        at += 1 + size
    return tuple(names)
