"""What the claims play in: certificates, a bot outside of the containers, clients, containers."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.container.images import Image, remove
from tests.container.runtime import PATIENCE, Container, Run

NAME = "bot.example.com"
OWNER = 65532
CERTIFICATES = "/certificates"
ALONE = {
    "BOTPROXY_CERTIFICATES__0__CHAIN": f"{CERTIFICATES}/fullchain.pem",
    "BOTPROXY_CERTIFICATES__0__KEY": f"{CERTIFICATES}/privkey.pem",
}
"""Configuration enough."""
SLOW = 3.0
"""Seconds that the bot takes for /slow."""
_ISSUE = Path(__file__).with_name("issue.py")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    certificate: bytes | None


class Scene:
    """One for all claims; `tidy` between them."""

    def __init__(self, directory: Path, image: Image, one: Image) -> None:
        """`one`: the image that has a bot in it."""
        self.directory, self.image, self.one = directory, image, one
        self.certificates = directory / "certificates"
        self.trust: ssl.SSLContext | None = None
        """Of clients, instead of our root."""
        self._containers: list[Container] = []
        self._count = 0
        self._over = threading.Event()
        self._bot: ThreadingHTTPServer | None = None

    def prepare(self) -> None:
        self.issue(self.certificates)
        self.tidy()
        self._start_bot()

    @contextlib.contextmanager
    def bot_away(self) -> Iterator[None]:
        """Its port is free for another."""
        self._stop_bot()
        try:
            yield
        finally:
            self.tidy()
            self._start_bot()

    def _start_bot(self) -> None:
        self._bot = ThreadingHTTPServer(("127.0.0.1", 8000), _answering(self._over))
        threading.Thread(target=self._bot.serve_forever, daemon=True).start()

    def _stop_bot(self) -> None:
        if self._bot is not None:
            self._bot.shutdown()
            self._bot.server_close()
            self._bot = None

    def issue(self, directory: Path, owner: int = OWNER, name: str = NAME) -> None:
        """A new certificate, as a program of uid `owner` would write it."""
        directory.mkdir(exist_ok=True)
        os.chown(directory, owner, owner)
        container = self.start(
            entrypoint=["/opt/botproxy/bin/python3", "/issue.py"],
            command=["/issued", name],
            user=f"{owner}:{owner}",
            mounts={"/issue.py": _ISSUE},
            writable={"/issued": directory},
        )
        code, _ = container.end()
        assert code == 0, container.says()

    def start(self, image: Image | None = None, **how: Any) -> Container:
        self._count += 1
        container = Container(Run(image or self.image, **how), self.directory / f"c{self._count}")
        self._containers.append(container)
        return container

    def serve(self, **how: Any) -> Container:
        """botproxy as variables alone have it, healthy."""
        how["env"] = {**ALONE, **how.get("env", {})}
        how["mounts"] = {CERTIFICATES: self.certificates, **how.get("mounts", {})}
        return self.start(**how).until_healthy()

    def ask(self, path: str, *, body: bytes | None = None, port: int = 8443) -> Answer:
        """One request of a client that trusts our root only; in the clear on 8080."""
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
            sock = plain if port == 8080 else self.trusting().wrap_socket(plain, server_hostname=NAME)
            method = "GET" if body is None else "POST"
            head = f"{method} {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n"
            length = "" if body is None else f"Content-Length: {len(body)}\r\n"
            sock.sendall(f"{head}{length}\r\n".encode() + (body or b""))
            response = HTTPResponse(sock)
            response.begin()
            shown = sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None
            answer = Answer(response.status, dict(response.headers), response.read(), shown)
            sock.close()
            return answer

    def trusting(self) -> ssl.SSLContext:
        if self.trust is not None:
            return self.trust
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.certificates / "root.pem")
        return context

    def tidy(self) -> None:
        while self._containers:
            self._containers.pop().remove()

    def close(self) -> None:
        self._over.set()
        self._stop_bot()
        self.tidy()
        remove(self.directory)


def _answering(over: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            over.wait({"/slow": SLOW, "/never": 60.0}.get(self.path, 0.0))
            body = json.dumps({"path": self.path, "proto": self.headers["X-Forwarded-Proto"]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:
                pass  # the client is gone, which is what some claims are about

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
