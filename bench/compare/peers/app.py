"""The bot as an ASGI application, for servers that speak TLS themselves and need no proxy: no hop, less work.

It answers as `bench.compare.bot` does. It must not import anything of this repository but
`bench.compare.payload`, since it runs in the peers' own environment.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from bench.compare import payload

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def app(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "websocket":
        await _echo(receive, send)
    elif scope["path"] == payload.DOWNLOAD:
        await _start(send, 200, payload.LARGE_BYTES)
        for number in range(payload.LARGE):
            more = number + 1 < payload.LARGE
            await send({"type": "http.response.body", "body": payload.BLOCK, "more_body": more})
    else:
        right = scope["method"] == "GET" or await _is_right(scope["path"], receive)
        body = payload.answer(scope["path"]) if right else b""
        await _start(send, 200 if right else 400, len(body))
        await send({"type": "http.response.body", "body": body})


# Private


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"].removeprefix("lifespan.")
        await send({"type": f"lifespan.{kind}.complete"})
        if kind == "shutdown":
            return


async def _start(send: Send, status: int, length: int) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(length).encode("ascii"))]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _is_right(path: str, receive: Receive) -> bool:
    large = path == payload.UPLOAD
    got, right = 0, True
    while True:
        message = await receive()
        part = message.get("body", b"")
        expected = payload.is_pattern(part, got) if large else payload.WEBHOOK.startswith(part, got)
        right, got = right and expected, got + len(part)
        if not message.get("more_body", False):
            return right and got == (payload.LARGE_BYTES if large else len(payload.WEBHOOK))


async def _echo(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        text, data = message.get("text"), message.get("bytes")
        await send({"type": "websocket.send", **({"bytes": data} if text is None else {"text": text})})
