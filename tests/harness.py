"""botproxy as its users run it, and bots of every kind, on real sockets.

`Proxied` is a botproxy process of its own; `Bot` an origin whose behaviour is a
function over the raw connection. What a fake asserts fails the test that made it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
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

import pytest
import yaml

from tests.wire import OK, PATIENCE, Message, Wire


def free_port() -> int:
    """A TCP port that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def eventually(what: Callable[[], object], otherwise: str = "it never came about") -> None:
    """Wait until `what` holds; fails with `otherwise` after the patience of all tests."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def program(*names: str) -> str:
    """Path of an external program; without it the test is skipped, in CI it fails."""
    for name in names:
        if found := shutil.which(name):
            return found
    if os.environ.get("TESTS_SKIP_NOTHING"):
        pytest.fail(f"none of {names} is installed")
    pytest.skip(f"none of {names} is installed")


# Bots


Behaviour = Callable[[Wire], None]


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
        if os.geteuid() == 0:
            config.setdefault("user", "nobody")
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

    @property
    def keeper(self) -> int:
        """Its process id; waits until there is one."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = [pid for pid, name in self.children().items() if name == "botproxy-keeper"]
            if found:
                return found[0]
            assert time.monotonic() < deadline, "there is no keeper"
            time.sleep(0.01)

    def ask(self, target: str, method: str = "GET") -> dict[str, Any]:
        """What the admin socket answers."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60.0)
        connection.sock.connect(f"{self.config['state_dir']}/admin.sock")
        with contextlib.closing(connection):
            connection.request(method, target)
            answer = json.loads(connection.getresponse().read())
        assert isinstance(answer, dict)
        return answer

    def reload(self, query: str = "") -> dict[str, dict[str, Any]]:
        """Have the certificate files looked at; what became of each certificate, by name."""
        answer = self.ask(f"/-/reload?wait=1&{query}", "POST")
        return {change["name"]: change for change in answer["certificates"]}

    def certificate(self, name: str) -> dict[str, Any]:
        """The status of one certificate."""
        found = [each for each in self.ask("/-/certificates")["certificates"] if each["name"] == name]
        assert len(found) == 1
        return dict(found[0])

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
def running(config: dict[str, Any], directory: Path, ends_with: int = 0, **kwargs: Any) -> Iterator[Proxied]:
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


def holds_connections(port: int) -> bool:
    """Whether somebody who listens on `port` has a TCP connection that is not closed yet (proc(5))."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    at, listening, nobody = f":{port:04X}", "0A", "0"
    return any(row[1].endswith(at) and row[3] != listening and row[9] != nobody for row in rows)


def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
