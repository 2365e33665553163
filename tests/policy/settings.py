"""A configuration with nothing but what a test is about."""

from __future__ import annotations

from typing import Any

from botproxy.config.schema import Config
from botproxy.fields import Fields
from botproxy.model import Peer, RequestHead

PEER = Peer("203.0.113.7", 40000, 443)
PROXY = Peer("10.0.0.1", 40000, 443, trusted=True)


def config(**keys: Any) -> Config:
    return Config.model_validate({"certificates": [{"chain": "chain.pem", "key": "key.pem"}], **keys})


def fields(*pairs: tuple[str, str]) -> Fields:
    return Fields.of(*((name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs))


def head(*pairs: tuple[str, str], **changes: Any) -> RequestHead:
    values: dict[str, Any] = {
        "method": b"POST",
        "target": b"/hook",
        "minor": 1,
        "fields": fields(("Host", "bot.example"), *pairs),
        "authority": b"bot.example",
        "host": "bot.example",
        "content_length": None,
        "chunked": False,
        "keep_alive": True,
        "expects_continue": False,
        "websocket_key": None,
    }
    return RequestHead(**(values | changes))


def parsed(block: bytes) -> list[tuple[str, str]]:
    """Names and values of a block, which must be whole lines."""
    assert block == b"" or block.endswith(b"\r\n")
    lines = block.split(b"\r\n")[:-1]
    pairs = [line.decode("latin-1").partition(": ") for line in lines]
    assert all(name and separator for name, separator, _ in pairs)
    return [(name, value) for name, _, value in pairs]
