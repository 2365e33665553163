"""botproxy as its users run it, and bots of every kind, on real sockets.

`Proxied` is a botproxy process of its own; `Bot` an origin whose behaviour is a
function over the raw connection. What a fake asserts fails the test that made it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import yaml

PATIENCE = 20.0
"""Seconds until a test that waits for something gives up."""


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# Bots


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
            except (ConnectionError, ssl.SSLEOFError):
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
            except (ConnectionError, ssl.SSLEOFError):
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
        except (ConnectionError, ssl.SSLEOFError):
            return b""

    def read_to_end(self) -> tuple[bytes, bool]:
        """Everything until the connection ends, and whether it ended in order (over TLS: close_notify)."""
        try:
            while more := self.sock.recv(65536):
                self.buffer += more
            in_order = True
        except (ConnectionError, ssl.SSLEOFError):
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
        except (ConnectionError, ssl.SSLEOFError):
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


Behaviour = Callable[[Wire], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Bot:
    """An origin on a free port (or a Unix socket): one thread a connection, `behaviour` over each."""

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        path: Path | None = None,
        port: int = 0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.requests: list[Message] = []
        self.connections = 0
        self.failures: list[BaseException] = []
        self._behaviour = behaviour or self.answers(OK)
        self._context = context
        self._changed = threading.Condition()
        self._wires: list[Wire] = []
        self._open = 0
        self._closing = False
        if path is not None:
            self._sock = socket.socket(socket.AF_UNIX)
            self._sock.bind(str(path))
            self.url = f"unix:{path}"
        else:
            self._sock = socket.socket()
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._sock.bind(("127.0.0.1", port))
            self.port = int(self._sock.getsockname()[1])
            self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}"
        self._sock.listen(512)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def behave(self, behaviour: Behaviour) -> None:
        """What to do on connections from now on."""
        self._behaviour = behaviour

    def answers(self, response: bytes) -> Behaviour:
        """Reads whole requests and answers each with `response`, until the connection ends."""

        def behave(wire: Wire) -> None:
            while (message := wire.read_message()).head:
                self.saw(message)
                if not message.complete:
                    return
                wire.send(response)

        return behave

    def saw(self, message: Message) -> None:
        """Keep a request for `wait_for`."""
        with self._changed:
            self.requests.append(message)
            self._changed.notify_all()

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Until `what` holds; it is asked again whenever something happened."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while not what():
                left = deadline - time.monotonic()
                assert left > 0, f"it did not happen; seen: {self.requests}"
                self._changed.wait(min(left, 0.05))

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return self._open

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with self._changed:
            self.connections += 1
            self._open += 1
            self._changed.notify_all()
        try:
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
            with Wire(sock) as wire:
                self._wires.append(wire)
                self._behaviour(wire)
        except (OSError, ValueError) as error:
            expected = isinstance(error, ConnectionError | TimeoutError | ssl.SSLError)
            if not expected and not self._closing:
                self.failures.append(error)
        except AssertionError as error:
            self.failures.append(error)
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def stop_listening(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join(PATIENCE)

    def close(self) -> None:
        try:
            self.stop_listening()
        except OSError:
            pass  # stopped before
        self._closing = True
        for wire in self._wires:
            try:
                # Its thread closes it: a number closed here could be another socket's by the time it reads.
                socket.socket.shutdown(wire.sock, socket.SHUT_RDWR)
            except OSError:
                pass  # ended before
        self.wait_for(lambda: self._open == 0)
        if self.failures:
            raise self.failures[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.close()
        except BaseException:
            if kind is None:
                raise


# botproxy


class Lines:
    """What a process writes, line by line, as it comes."""

    def __init__(self, stream: Any) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: Any) -> None:
        for line in stream:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        stream.close()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, matches: Callable[[str], bool], since: int = 0) -> str:
        """The first line from index `since` on that `matches`."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while True:
                for line in self.lines[since:]:
                    if matches(line):
                        return line
                left = deadline - time.monotonic()
                text = "\n".join(self.lines[-30:])
                assert left > 0, f"the line did not come; there are:\n{text}"
                assert not self._ended, f"the process ended first; there are:\n{text}"
                self._changed.wait(left)

    def join(self) -> list[str]:
        """All lines, once the process has closed the stream."""
        self._thread.join(PATIENCE)
        return self.lines


class Proxied:
    """A running botproxy."""

    def __init__(
        self,
        config: dict[str, Any],
        directory: Path,
        env: dict[str, str] | None = None,
        descriptors: int | None = None,
    ) -> None:
        """`descriptors`: limit on open files that it is born with."""
        self.config = config
        self.directory = directory
        file = directory / "botproxy.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "botproxy", "serve", "--config", str(file)]
        if descriptors is not None:
            command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.access = Lines(self.process.stdout)
        self.log = Lines(self.process.stderr)

    def wait_ready(self) -> Self:
        self.log.wait_for(lambda line: "msg=serving" in line)
        return self

    @property
    def port(self) -> int:
        return int(self.config["listen"][0].rpartition(":")[2])

    @property
    def plain_port(self) -> int:
        return int(self.config["plain_listen"][0].rpartition(":")[2])

    def tcp(self, port: int | None = None) -> socket.socket:
        """A bare connection to the TLS port."""
        sock = socket.create_connection(("127.0.0.1", port or self.port), timeout=PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def connect(self, context: ssl.SSLContext, name: str | None = "localhost") -> Wire:
        """A TLS connection."""
        return Wire(context.wrap_socket(self.tcp(), server_hostname=name, suppress_ragged_eofs=False))

    def records(self, matches: Callable[[dict[str, Any]], bool] = lambda _: True) -> list[dict[str, Any]]:
        """Access log records so far."""
        return [record for line in list(self.access.lines) if matches(record := json.loads(line))]

    def wait_record(self, since: int = 0, **wanted: Any) -> dict[str, Any]:
        """The first access log record from line `since` on with these values."""

        def fits(line: str) -> bool:
            record = json.loads(line)
            return all(record.get(key) == value for key, value in wanted.items())

        return dict(json.loads(self.access.wait_for(fits, since)))

    def children(self) -> dict[int, str]:
        """Processes of this botproxy by id, with the names `ps` shows."""
        found = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                text = status.read_text()
            except OSError:
                continue  # it ended while we looked
            name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
            if int(rest[1]) == self.process.pid:
                found[int(status.parent.name)] = name
        return found

    def workers(self) -> list[int]:
        return [pid for pid, name in self.children().items() if name == "botproxy-worker"]

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = PATIENCE) -> int:
        return self.process.wait(timeout)

    def stop(self) -> int:
        """End it, by force if need be; its exit status."""
        if self.process.poll() is None:
            self.terminate()
            self.terminate()
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@contextmanager
def running(
    config: dict[str, Any], directory: Path, ends_with: int = 0, **kwargs: Any
) -> Iterator[Proxied]:
    """botproxy with `config`, ready; stopped at the end, which must be clean."""
    proxied = Proxied(config, directory, **kwargs)
    try:
        yield proxied.wait_ready()
    finally:
        code = proxied.stop()
        log = proxied.log.join()
        proxied.access.join()
    assert code == ends_with, log
    assert not [line for line in log if "Traceback" in line], log


def rss_of(pid: int) -> int:
    """Resident bytes of a process that are its own or shared."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def forget_peak(pid: int) -> None:
    """Let `peak_of` begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_of(pid: int) -> int:
    """The most resident bytes there were since `forget_peak`, however short."""
    return int(status_of(pid, "VmHWM")[0]) * 1024


def limit_descriptors(pid: int, count: int) -> None:
    """Let `pid` have descriptors below `count` only, from now on."""
    command = ["prlimit", f"--pid={pid}", f"--nofile={count}:"]
    if os.geteuid() == 0:
        # Only its own account may do so without CAP_SYS_RESOURCE, which root in a container has not.
        account = status_of(pid, "Uid")[0], status_of(pid, "Gid")[0]
        subprocess.run(command, check=True, user=int(account[0]), group=int(account[1]), extra_groups=[])
    else:
        subprocess.run(command, check=True)


def status_of(pid: int, field: str) -> list[str]:
    """Values of a field of /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text()
    return text.partition(f"\n{field}:")[2].partition("\n")[0].split()


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
