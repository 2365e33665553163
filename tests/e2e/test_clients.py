"""Real clients and real bots: what people will run on either side."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest
from aiogram import Bot as TelegramBot
from aiogram import Dispatcher
from aiogram.types import Message as TelegramMessage
from aiogram.webhook.aiohttp_server import SimpleRequestHandler
from aiohttp import WSMsgType, web
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.sync.client import connect as websocket

from tests.certs import Authority, Issued
from tests.harness import Bot, Proxied, free_port, program, running
from tests.wire import PATIENCE


@contextmanager
def serving(application: web.Application) -> Iterator[int]:
    """`application` on a free port, in a thread of its own."""
    port = free_port()
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(application)
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", port).start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.run_until_complete(runner.cleanup())
        loop.close()


class Front:
    """botproxy with a certificate for localhost before the bot on `port`."""

    def __init__(self, directory: Path, issued: Issued, authority: Authority, port: int) -> None:
        pair = issued.write(directory / "tls")
        self.issued = issued
        self.port = free_port()
        self.ca = directory / "ca.pem"
        assert authority.root is not None
        self.ca.write_bytes(authority.root.public_bytes(Encoding.PEM))
        self.config = {
            "listen": [f"127.0.0.1:{self.port}"],
            "plain_listen": [],
            "workers": 1,
            "certificates": [{"chain": pair.chain, "key": pair.key}],
            "upstreams": {"bot": {"url": f"http://127.0.0.1:{port}"}},
            "state_dir": str(directory / "state"),
        }
        self.directory = directory

    def run(self) -> AbstractContextManager[Proxied]:
        return running(self.config, self.directory)

    def url(self, path: str = "/", scheme: str = "https") -> str:
        return f"{scheme}://localhost:{self.port}{path}"

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))


Fronts = Callable[[int], Front]


@pytest.fixture
def front(tmp_path: Path, ca: Authority, cert_for: Callable[..., Issued]) -> Fronts:
    return lambda port: Front(tmp_path, cert_for("localhost"), ca, port)


def test_curl_verifies_and_is_answered(front: Fronts) -> None:
    curl = program("curl")
    with Bot() as bot:
        door = front(bot.port)
        with door.run():
            done = subprocess.run(
                [curl, "-sS", "-i", "--cacert", str(door.ca), "-d", "x=1", door.url("/hook?a=b")],
                capture_output=True,
                timeout=PATIENCE,
                check=True,
            )
    assert done.stdout.startswith(b"HTTP/1.1 200 OK\r\n")
    assert done.stdout.endswith(b"\r\n\r\nok")
    assert bot.requests[0].target == "/hook?a=b"
    assert bot.requests[0].body == b"x=1"


def test_curl_uploads_with_expect_and_in_chunks(front: Fronts, tmp_path: Path) -> None:
    curl = program("curl")
    file = tmp_path / "upload"
    file.write_bytes(os.urandom(3_000_000))
    with Bot() as bot:
        door = front(bot.port)
        with door.run():
            for extra in (["-H", "Expect: 100-continue"], ["-H", "Transfer-Encoding: chunked"]):
                command = [
                    curl,
                    "-sS",
                    "--fail",
                    "--cacert",
                    str(door.ca),
                    "--data-binary",
                    f"@{file}",
                    *extra,
                ]
                subprocess.run([*command, door.url()], capture_output=True, timeout=PATIENCE, check=True)
    assert [request.body == file.read_bytes() for request in bot.requests] == [True, True]


def test_httpx_keeps_its_connection_and_streams(front: Fronts) -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in request.content.iter_any():
            await response.write(piece)
        return response

    application = web.Application(client_max_size=1 << 30)
    application.router.add_route("*", "/{path:.*}", echo)
    with serving(application) as port:
        door = front(port)
        with door.run() as proxied, httpx.Client(verify=door.context()) as client:
            for size in (0, 10, 2_000_000):
                data = os.urandom(size)
                response = client.post(door.url("/echo"), content=data)
                assert response.status_code == 200
                assert response.content == data
            proxied.terminate()
            proxied.wait()
            handshakes = [record for record in proxied.records() if record.get("handshake_ms") is not None]
            assert len(handshakes) == 1


def test_websockets_library_talks_through(front: Fronts) -> None:
    async def talk(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                await socket.send_str(message.data[::-1])
            elif message.type == WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        return socket

    application = web.Application()
    application.router.add_get("/ws", talk)
    with serving(application) as port:
        door = front(port)
        with door.run(), websocket(door.url("/ws", "wss"), ssl=door.context()) as client:
            client.send("hello")
            assert client.recv(PATIENCE) == "olleh"
            big = os.urandom(500_000)
            client.send(big)
            assert client.recv(PATIENCE) == big


PAGE = """<!doctype html><title>bot</title><script>
const seen = {};
function done(what, value) {
  seen[what] = value;
  if ('socket' in seen && 'events' in seen)
    fetch('/report', {method: 'POST', body: JSON.stringify(seen)});
}
const socket = new WebSocket(`wss://${location.host}/ws`);
socket.onopen = () => socket.send('from the page');
socket.onmessage = event => { done('socket', event.data); socket.close(); };
socket.onerror = () => done('socket', 'error');
const source = new EventSource('/events');
const events = [];
source.onmessage = event => {
  events.push(event.data);
  if (events.length == 3) { source.close(); done('events', events); }
};
</script>"""


def test_a_page_in_chromium_gets_websocket_and_events(front: Fronts, tmp_path: Path) -> None:
    chromium = program("chromium", "chromium-browser")
    reported: list[dict[str, object]] = []
    arrived = threading.Event()

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def talk(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(f"echo {message.data}")
        return socket

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(3):
            await response.write(b"data: %d\n\n" % number)
        await asyncio.Event().wait()  # an event stream does not end by itself
        return response

    async def report(request: web.Request) -> web.Response:
        reported.append(await request.json())
        arrived.set()
        return web.Response()

    application = web.Application()
    application.router.add_get("/", page)
    application.router.add_get("/ws", talk)
    application.router.add_get("/events", events)
    application.router.add_post("/report", report)
    with serving(application) as port:
        door = front(port)
        spki = door.issued.leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        pin = base64.b64encode(hashlib.sha256(spki).digest()).decode()
        command = [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--ignore-certificate-errors-spki-list={pin}",
            "--remote-debugging-port=0",
            door.url(),
        ]
        with door.run():
            browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                assert arrived.wait(60), "the page did not report"
            finally:
                browser.terminate()
                browser.wait(PATIENCE)
    assert reported == [{"socket": "echo from the page", "events": ["0", "1", "2"]}]


def test_a_telegram_bot_of_aiogram_gets_its_update(front: Fronts) -> None:
    texts: list[str | None] = []
    dispatcher = Dispatcher()

    @dispatcher.message()
    async def on_message(message: TelegramMessage) -> None:
        texts.append(message.text)

    secret = "s3cret-Token_of_the_bot"
    application = web.Application()
    bot = TelegramBot("42:TEST")
    SimpleRequestHandler(dispatcher, bot, handle_in_background=False, secret_token=secret).register(
        application, path="/telegram"
    )
    update = {
        "update_id": 1,
        "message": {
            "message_id": 1,
            "date": 1,
            "chat": {"id": 1, "type": "private"},
            "text": "hello bot",
        },
    }
    with serving(application) as port:
        door = front(port)
        with door.run() as proxied, httpx.Client(verify=door.context()) as client:
            headers = {"X-Telegram-Bot-Api-Secret-Token": secret}
            assert client.post(door.url("/telegram"), json=update, headers=headers).status_code == 200
            assert client.post(door.url("/telegram"), json=update).status_code == 401
            proxied.terminate()
            proxied.wait()
            assert secret not in "".join(proxied.access.join() + proxied.log.join())
    assert texts == ["hello bot"]


NODE_BOT = """
const http = require('http');
const server = http.createServer((request, response) => {
  let body = '';
  request.on('data', piece => body += piece);
  request.on('end', () => response.end(JSON.stringify(
    {method: request.method, url: request.url, proto: request.headers['x-forwarded-proto'], body})));
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
"""


def test_a_node_bot_gets_its_webhook(front: Fronts) -> None:
    node = program("node", "nodejs")
    process = subprocess.Popen([node, "-e", NODE_BOT], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        door = front(port)
        with door.run(), httpx.Client(verify=door.context()) as client:
            answer = client.post(door.url("/slack/events?x=1"), content=b"payload").json()
    finally:
        process.terminate()
        process.wait(PATIENCE)
        if process.stdout is not None:
            process.stdout.close()
    assert answer == {"method": "POST", "url": "/slack/events?x=1", "proto": "https", "body": "payload"}
