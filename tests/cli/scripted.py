"""An admin socket that answers one question with what the test says."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cli.command import PATIENCE, Ended, botproxy


@contextmanager
def admin(path: Path, answer: bytes | Callable[[socket.socket], None]) -> Iterator[list[bytes]]:
    """The socket at `path`; gives what was asked."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(PATIENCE)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(PATIENCE)
                while not b"".join(asked).endswith(b"\r\n\r\n"):
                    asked.append(connection.recv(65536))
                if callable(answer):
                    answer(connection)
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            thread.join()


def response(status: int, content: object) -> bytes:
    body = json.dumps(content).encode()
    return b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(body), body)


def told(directory: Path, content: object, *arguments: str, status: int = 200) -> tuple[Ended, str]:
    """How a command ends that is answered with `content`, and the first line of what it asked."""
    path = directory / "admin.sock"
    path.unlink(missing_ok=True)
    with admin(path, response(status, content)) as asked:
        ended = botproxy(*arguments, "--admin", f"unix:{path}")
    return ended, b"".join(asked).split(b"\r\n")[0].decode("ascii")
