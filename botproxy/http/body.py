"""Where a message body ends, and what of its bytes is content (RFC 9112 6 and 7).

Sans-IO: bytes in; content and what lies behind the end out. Stricter than the
RFC demands and than h11 is: chunk lines end with CRLF only, hold no whitespace,
extensions are well formed and bounded, trailers are checked and dropped.
Anything else raises BodyError, and the connection is not used again.
"""

from __future__ import annotations

import re
from typing import Protocol

CHUNK_LINE_LIMIT = 4096
"""One chunk-size line with its extensions."""
EXTENSIONS_LIMIT = 16 * 1024
"""All extensions of one body (the drip attack of CVE-2023-39326)."""
TRAILERS_LIMIT = 16 * 1024
TRAILER_FIELDS_LIMIT = 100
TINY = 16
"""Bytes; a chunk of fewer costs more to read than to send."""
CHUNKS_AT_ONCE = 256
"""Chunks decoded in one go, about a third of a millisecond: thousands of tiny ones fit into what arrives at
once, and everybody else waits meanwhile."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t -~\x80-\xff])*"'
_CHUNK = re.compile(
    rb"([0-9A-Fa-f]{1,15})((?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*)"
)
_TRAILER = re.compile(rb"([A-Za-z0-9-]+):[^\x00-\x08\x0a-\x1f\x7f]*")

_FORBIDDEN_TRAILERS = frozenset(
    {
        b"authorization",
        b"connection",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"cookie",
        b"expect",
        b"forwarded",
        b"host",
        b"set-cookie",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-real-ip",
    }
)
"""Fields that steer framing, routing or trust (RFC 9110 6.5.1); also everything in X-Forwarded-*."""


class BodyError(Exception):
    """The body breaks its framing. The text is ours, never the peer's."""


class Decoder(Protocol):
    """One body, piece by piece."""

    done: bool

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Content in `data`, and the rest: what lies behind the body's end, or else is to be fed again.

        Content is empty only when there is no rest, or the body is `done`.
        """


class LengthDecoder:
    """A body of known length."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        left = self._left
        self._left = beyond = left - len(data)
        if beyond > 0:
            return data, b""
        self.done = True
        return (data, b"") if not beyond else (data[:left], data[left:])


class CloseDecoder:
    """A response body that lasts until the connection ends, which the caller sees."""

    done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        return data, b""


class ChunkedDecoder:
    """A body in the chunked coding."""

    def __init__(self, tiny_chunks: int | None = None) -> None:
        """`tiny_chunks`: how many chunks may be tiny before their average size counts; None: all."""
        self.done = False
        self._tiny_chunks = tiny_chunks
        self._chunks = 0
        self._content = 0
        self._pending = b""
        self._left = 0
        self._in_chunk = False
        self._in_trailers = False
        self._extensions = 0
        self._trailer_bytes = 0
        self._trailer_fields = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        if self._pending:
            data = self._pending + data
            self._pending = b""
        content: list[bytes] = []
        at = 0
        enough = self._chunks + CHUNKS_AT_ONCE
        while not self.done:
            if self._in_chunk:
                piece = data[at : at + self._left]
                content.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left or not self._end_of_chunk(data, at):
                    break
                at += 2
                if self._chunks >= enough:
                    return b"".join(content), data[at:]
            line_end = self._line_end(data, at)
            if line_end < 0:
                break
            line = data[at:line_end]
            at = line_end + 2
            if self._in_trailers:
                self._take_trailer(line)
            else:
                self._take_size(line)
        if self.done:
            return b"".join(content), data[at:]
        self._pending = data[at:]
        return b"".join(content), b""

    def _end_of_chunk(self, data: bytes, at: int) -> bool:
        """Whether the CRLF after the chunk is there; False when it is still to come."""
        end = data[at : at + 2]
        if end == b"\r\n":
            self._in_chunk = False
            return True
        if b"\r\n".startswith(end):
            return False
        raise BodyError("chunk data does not end with CRLF")

    def _line_end(self, data: bytes, at: int) -> int:
        limit = TRAILERS_LIMIT if self._in_trailers else CHUNK_LINE_LIMIT
        end = data.find(b"\r\n", at, at + limit + 2)
        if end < 0 and len(data) - at > limit:
            raise BodyError("a chunk line or trailer is too long")
        newline = data.find(b"\n", at, end if end >= 0 else len(data))
        if newline >= 0:
            raise BodyError("a bare line feed in the chunked coding")
        return end

    def _take_size(self, line: bytes) -> None:
        match = _CHUNK.fullmatch(line)
        if match is None:
            raise BodyError("a malformed chunk size or extension")
        self._extensions += len(match[2])
        if self._extensions > EXTENSIONS_LIMIT:
            raise BodyError("too many chunk extensions")
        self._left = int(match[1], 16)
        self._chunks += 1
        self._content += self._left
        if self._tiny_chunks is not None and self._chunks > self._tiny_chunks + self._content / TINY:
            raise BodyError("too many tiny chunks")
        if self._left:
            self._in_chunk = True
        else:
            self._in_trailers = True

    def _take_trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._trailer_bytes += len(line)
        self._trailer_fields += 1
        if self._trailer_bytes > TRAILERS_LIMIT or self._trailer_fields > TRAILER_FIELDS_LIMIT:
            raise BodyError("too many trailers")
        match = _TRAILER.fullmatch(line)
        if match is None:
            raise BodyError("a malformed trailer")
        name = match[1].lower()
        if name in _FORBIDDEN_TRAILERS or name.startswith(b"x-forwarded-"):
            raise BodyError("a trailer that belongs into the head")


def chunk(data: bytes) -> bytes:
    """`data` as one chunk; empty data would end the body, so it is no chunk at all."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


LAST_CHUNK = b"0\r\n\r\n"
