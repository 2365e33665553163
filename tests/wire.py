"""The raw side of a connection: bytes sent and messages read as they stand on the wire."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from typing import Self

PATIENCE = 20.0
"""Seconds until a test that waits for something gives up."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
"""The smallest answer of a bot."""


def get(path: str = "/", *fields: str, version: str = "1.1", method: str = "GET") -> bytes:
    """A request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *fields, "", ""]
    return "\r\n".join(lines).encode()


def post(path: str, *fields: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """The same with a body, whose framing is in `fields`."""
    return get(path, *fields, version=version, method="POST") + body


class Wire:
    """One raw connection, read message by message."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        sock.settimeout(PATIENCE)

    def read_some(self) -> bytes:
        """What is there or comes next; empty at the end."""
        if self.buffer:
            data, self.buffer = self.buffer, b""
            return data
        try:
            return self.sock.recv(65536)
        except ConnectionError:
            return b""

    def read_until(self, mark: bytes) -> bytes:
        """Up to and including `mark`; what there is when the connection ends before it."""
        while mark not in self.buffer:
            try:
                more = self.sock.recv(65536)
            except (ConnectionError, ssl.SSLError):
                more = b""
            if not more:
                data, self.buffer = self.buffer, b""
                return data
            self.buffer += more
        end = self.buffer.index(mark) + len(mark)
        data, self.buffer = self.buffer[:end], self.buffer[end:]
        return data

    def read_exactly(self, size: int) -> bytes:
        """`size` bytes, fewer when the connection ends before."""
        while len(self.buffer) < size:
            try:
                more = self.sock.recv(65536)
            except (ConnectionError, ssl.SSLError):
                more = b""
            if not more:
                break
            self.buffer += more
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def read_all(self) -> bytes:
        """Everything until the connection ends, in order or not."""
        while more := self.read_some_or_end():
            self.buffer += more
        data, self.buffer = self.buffer, b""
        return data

    def read_some_or_end(self) -> bytes:
        try:
            return self.sock.recv(65536)
        except (ConnectionError, ssl.SSLError):
            return b""

    def read_to_end(self) -> tuple[bytes, bool]:
        """Everything until the connection ends, and whether it ended in order (over TLS: close_notify)."""
        try:
            while more := self.sock.recv(65536):
                self.buffer += more
            in_order = True
        except (ConnectionError, ssl.SSLError):  # Python before 3.11.4 has no name for an end without a word
            in_order = False
        data, self.buffer = self.buffer, b""
        return data, in_order

    def has_more(self, within: float) -> bool:
        """Whether anything, the end included, comes in `within` seconds."""
        if self.buffer:
            return True
        self.sock.settimeout(within)
        try:
            self.buffer += self.sock.recv(65536)
        except TimeoutError:
            return False
        except (ConnectionError, ssl.SSLError):
            pass  # it ended
        finally:
            self.sock.settimeout(PATIENCE)
        return True

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_end(self) -> None:
        """A bare FIN: the end of the TCP stream, no close_notify."""
        socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def read_message(self) -> Message:
        """A whole request or response."""
        return Message.read(self)

    def request(self, data: bytes) -> Message:
        """Send raw bytes, read one response."""
        self.send(data)
        return self.read_message()

    def reset(self) -> None:
        """Close with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HelloFor:
    """A client of `context` whose bytes the test carries, beginning with its hello in `data`."""

    def __init__(self, context: ssl.SSLContext, name: str | None = "localhost") -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass  # the hello is written
        self.data = self.outgoing.read()

    def finish(self, sock: socket.socket) -> None:
        """The rest of the handshake."""
        while True:
            try:
                self.tls.do_handshake()
                sock.sendall(self.outgoing.read())
                return
            except ssl.SSLWantReadError:
                sock.sendall(self.outgoing.read())
                data = sock.recv(65536)
                assert data, "the handshake was broken off"
                self.incoming.write(data)

    def exchange(self, sock: socket.socket, request: bytes) -> bytes:
        self.tls.write(request)
        sock.sendall(self.outgoing.read())
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                self.incoming.write(sock.recv(65536))

    def half_close(self, sock: socket.socket) -> int:
        """End our direction, and count the bytes that still come, up to the end.

        They cannot be decrypted: Python's TLS reads nothing after its own close_notify.
        """
        with suppress(ssl.SSLWantReadError):  # our close_notify is written all the same
            self.tls.unwrap()
        sock.sendall(self.outgoing.read())
        received = 0
        while data := sock.recv(65536):
            received += len(data)
        return received


class Message:
    """A request or response as it was on the wire."""

    def __init__(self, head: bytes) -> None:
        self.head = head
        lines = head.split(b"\r\n")
        self.start = lines[0]
        self.fields = [
            (name.lower().decode("latin-1"), value.strip().decode("latin-1"))
            for name, _, value in (line.partition(b":") for line in lines[1:] if line)
        ]
        self.body = b""
        self.complete = False

    @classmethod
    def read(cls, wire: Wire) -> Message:
        head = wire.read_until(b"\r\n\r\n")
        message = cls(head)
        if not head.endswith(b"\r\n\r\n"):
            return message
        if head.startswith(b"HTTP/") and (message.status < 200 or message.status in (204, 304)):
            message.complete = True
        elif "chunked" in message.values("transfer-encoding"):
            message._read_chunks(wire)
        elif lengths := message.values("content-length"):
            message.body = wire.read_exactly(int(lengths[0]))
            message.complete = len(message.body) == int(lengths[0])
        elif head.startswith(b"HTTP/"):
            message.body = wire.read_all()
            message.complete = True
        else:
            message.complete = True
        return message

    def _read_chunks(self, wire: Wire) -> None:
        while (line := wire.read_until(b"\r\n")).endswith(b"\r\n"):
            size = int(line, 16)
            data = wire.read_exactly(size + 2)
            self.body += data[:-2] if size else b""
            if size == 0:
                self.complete = data == b"\r\n"
                return

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1]) if b" " in self.start else 0

    @property
    def method(self) -> str:
        return self.start.split(b" ")[0].decode()

    @property
    def target(self) -> str:
        return self.start.split(b" ")[1].decode("latin-1")

    def values(self, name: str) -> list[str]:
        return [value for field, value in self.fields if field == name]

    def value(self, name: str) -> str:
        values = self.values(name)
        assert len(values) == 1, f"{name}: {values} in {self.head!r}"
        return values[0]

    def __contains__(self, name: str) -> bool:
        return bool(self.values(name))

    def __repr__(self) -> str:
        return f"<Message {self.head!r} +{len(self.body)}>"
