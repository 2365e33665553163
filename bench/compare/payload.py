"""What is asked and answered, the same for every peer; both ends hold it against this.

Everything is known beforehand, so that a client can tell a wrong byte from a right one
without calculating: an answer repeats the path it answers, bodies are a fixed pattern.
"""

from __future__ import annotations

import random

WEBHOOK = random.Random(1).randbytes(1024).hex().encode("ascii")
"""Body of 2 KB, about that of a platform's update."""
BLOCK = random.Random(2).randbytes(1 << 20)
LARGE = 64
"""Blocks of an upload or a download: 64 MiB."""
LARGE_BYTES = LARGE * len(BLOCK)
TEXT = b"a message of a chat, which the bot says again without a change.."
"""Of a WebSocket; a frame of less than 126 bytes."""
MASK = b"\x12\x34\x56\x78"
FRAME_FROM_CLIENT = (
    bytes((0x81, 0x80 | len(TEXT))) + MASK + bytes(byte ^ MASK[i % 4] for i, byte in enumerate(TEXT))
)
FRAME_FROM_BOT = bytes((0x81, len(TEXT))) + TEXT

HOOK, UPLOAD, DOWNLOAD, SOCKET = "/hook/", "/upload", "/download", "/socket"
_TWICE = BLOCK + BLOCK


def answer(path: str) -> bytes:
    """Body of the bot's answer; as long as `path` and a constant."""
    return b'{"ok":true,"path":"%b"}' % path.encode("ascii")


def is_pattern(data: bytes | memoryview, position: int) -> bool:
    """Whether `data` is what stands at `position` of a large body."""
    while data:
        part = data[: len(BLOCK)]
        if not _TWICE.startswith(part, position % len(BLOCK)):
            return False
        data, position = data[len(part) :], position + len(part)
    return True
