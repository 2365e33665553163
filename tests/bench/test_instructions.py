"""Counts that are the same twice, and grow by what is done, over all processes of a server."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

import pytest

from bench.instructions import CountError, Server, counted, per_operation
from tests.harness import free_port, program

SERVER = """
import os, signal, socket, sys
sock = socket.create_server(("127.0.0.1", int(sys.argv[1])))
worker = os.fork()
if worker == 0:
    while True:
        with sock.accept()[0] as peer:
            while data := peer.recv(1):
                if data == b"x":
                    os._exit(1)
                sum(range(10_000))
                peer.sendall(b"!")
def end(*_):
    os.kill(worker, signal.SIGTERM)
    os.waitpid(worker, 0)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    signal.pause()
"""
"""Answers each byte after some work, in a process of its own."""


@pytest.fixture(autouse=True)
def valgrind() -> None:
    program("valgrind")


class Serving:
    """Where SERVER serves."""

    def __init__(self) -> None:
        self.port = free_port()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def server(self, operate: Callable[[int], None]) -> Server:
        return Server((sys.executable, "-c", SERVER, str(self.port)), self.is_ready, operate)

    def is_ready(self) -> bool:
        try:
            self.connect().close()
        except OSError:
            return False
        return True


@pytest.fixture
def serving() -> Serving:
    return Serving()


def test_an_operation_costs_what_the_whole_tree_does_for_it(serving):
    def ask(count: int) -> None:
        with serving.connect() as sock:
            for _ in range(count):
                sock.sendall(b"?")
                assert sock.recv(1) == b"!"

    costs = [per_operation(serving.server(ask), 20) for _ in "ab"]
    first, second = (cost.each for cost in costs)
    assert first > 10_000  # one for each number at the very least
    assert first == pytest.approx(second, rel=0.01)
    assert (costs[0].short.operations, costs[0].long.operations) == (20, 60)


def test_it_can_be_asked_in_which_file_the_code_is(serving):
    """Of those that serve: what a process that has ended by then did is nobody's operation."""
    work = "zlib.crc32(data * 1_000_000)"
    other = "if os.fork() == 0:\n    sum(range(10**6))\n    os._exit(0)\nos.wait()\n"
    script = f"import zlib, os\n{other}{SERVER.replace('sum(range(10_000))', work)}"

    def ask(count: int) -> None:
        with serving.connect() as sock:
            for _ in range(count):
                sock.sendall(b"?")
                assert sock.recv(1) == b"!"

    server = Server((sys.executable, "-c", script, str(serving.port)), serving.is_ready, ask)
    cost = per_operation(server, 5, by_object=True)
    first = next(iter(cost.objects))
    assert first.startswith("libz")
    assert cost.objects[first] > 0.7 * cost.each
    assert sum(cost.objects.values()) == pytest.approx(cost.each)
    assert sum(cost.short.objects.values()) == cost.short.total


def test_every_child_of_a_command_has_a_count_of_its_own():
    script = (
        "import os\nif not (pid := os.fork()):\n    sum(range(10**6))\n    os._exit(0)\nos.wait()\nprint(pid)"
    )
    said, counts = counted((sys.executable, "-c", script))
    child = int(said)
    (parent,) = counts.keys() - {child}
    assert counts[child] - counts[parent] > 10**6


def test_a_command_that_fails_is_no_count():
    with pytest.raises(CountError, match="ended with 3: it is broken"):
        counted((sys.executable, "-c", "import sys\nprint('it is broken', file=sys.stderr)\nsys.exit(3)"))


def test_a_server_that_does_not_start_is_no_count_and_says_why():
    server = Server(
        (sys.executable, "-c", "raise SystemExit('no configuration')"), lambda: False, lambda _: None
    )
    with pytest.raises(CountError, match=r"ended with 1 before it served; it said: .*no configuration"):
        per_operation(server, 1)


def test_a_process_that_dies_meanwhile_is_no_count(serving):
    def kill(_: int) -> None:
        with serving.connect() as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b""

    with pytest.raises(CountError, match="processes ended while they were counted"):
        per_operation(serving.server(kill), 1)
