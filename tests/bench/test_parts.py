"""A server's worker is counted part by part, in one start."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from bench.micro import parts
from tests.harness import free_port, program

SERVER = """
import hashlib, os, signal, socket, sys
sock = socket.create_server(("127.0.0.1", int(sys.argv[1])))
child = os.fork()
if child == 0:
    with open("/proc/self/comm", "w") as comm:
        comm.write("a-worker")
    while True:
        with sock.accept()[0] as peer:
            while data := peer.recv(1):
                if data == b"x":
                    sum(range(10_000))
                else:
                    hashlib.sha256(bytes(100_000)).digest()
                peer.sendall(b"!")
def end(*_):
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    signal.pause()
"""
"""Answers each byte after some work, which is OpenSSL's or not."""


def test_each_part_is_counted_and_one_that_fails_stops_no_other(tmp_path):
    program("valgrind")
    port = free_port()

    def connect() -> socket.socket:
        return socket.create_connection(("127.0.0.1", port), timeout=60)

    def is_ready() -> bool:
        try:
            connect().close()
        except OSError:
            return False
        return True

    def ask(what: bytes, count: int) -> None:
        with connect() as sock:
            for _ in range(count):
                sock.sendall(what)
                assert sock.recv(1) == b"!"

    def fail() -> None:
        raise ValueError("another answer")

    done = parts.counted(
        (sys.executable, "-P", "-c", SERVER, str(port)),
        is_ready,
        {
            "short": lambda: ask(b"x", 10),
            "fails": fail,
            "long": lambda: ask(b"x", 30),
            "again": lambda: ask(b"x", 30),
            "hashed": lambda: ask(b"#", 10),
        },
        tmp_path / "place",
        {"PYTHONPATH": str(Path.cwd())},
    )
    assert done.failed == {"fails": "ValueError: another answer"}
    assert list(done.parts) == ["short", "long", "again", "hashed"]
    assert done.parts["short"].own > 10 * 10_000
    assert done.parts["long"].own == pytest.approx(3 * done.parts["short"].own, rel=0.05)
    assert done.parts["again"].own == pytest.approx(done.parts["long"].own, rel=0.01)
    assert done.parts["long"].cryptography == 0
    assert done.parts["hashed"].cryptography > 10 * 100_000
    assert done.parts["hashed"].own < done.parts["hashed"].cryptography
