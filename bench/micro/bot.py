"""The bot behind what is counted: short answers, a large one, large requests, a WebSocket.

A thread for each connection. Run `python -m bench.micro.bot PATH`, that of a Unix socket; ends with SIGTERM.
"""

from __future__ import annotations

import os
import socketserver
import sys
from io import BufferedIOBase

LARGE = bytes(range(256)) * 4096
"""1 MiB, up and down."""
DOWNLOAD, SOCKET = "/download", "/socket"
MESSAGE = b"\x81\x85\x01\x02\x03\x04idomk"
"""A masked text frame of five bytes; a proxy looks into none."""


class Connection(socketserver.StreamRequestHandler):
    """Requests one after the other, until it becomes a WebSocket or ends."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            path = line.split()[1].decode("ascii")
            fields = _fields(self.rfile)
            if path == SOCKET:
                self._echo()
                return
            body = self.rfile.read(int(fields.get(b"content-length", 0)))
            if body not in (b"", LARGE):
                self._answer(b"400 Bad Request", b"")
            elif path == DOWNLOAD:
                self._answer(b"200 OK", LARGE)
            else:
                self._answer(b"200 OK", b'{"path":"%b","bytes":%d}' % (path.encode("ascii"), len(body)))

    def _answer(self, status: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self.wfile.write(head % (status, len(body)) + body)

    def _echo(self) -> None:
        switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.wfile.write(switch + b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
        while len(frame := self.rfile.read(len(MESSAGE))) == len(MESSAGE):
            self.wfile.write(frame)


class Bot(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 512


# Private


def _fields(file: BufferedIOBase) -> dict[bytes, bytes]:
    found = {}
    while line := file.readline().strip():
        name, _, value = line.partition(b":")
        found[name.lower()] = value.strip()
    return found


if __name__ == "__main__":
    try:
        with Bot(sys.argv[1], Connection) as serving:
            os.chmod(sys.argv[1], 0o666)  # workers that have given up root come here
            serving.serve_forever()
    except KeyboardInterrupt:
        pass
