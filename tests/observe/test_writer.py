"""Lines reach their descriptor whole and in order, or are counted; nobody waits for them."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from botproxy.observe.writer import GATHER, PIPE_BUF, LineWriter, write_now

PATIENCE = 5.0


def lost(count: int) -> bytes:
    return b"lost %d\n" % count


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        with suppress(OSError):  # a test closed it
            os.close(fd)


def read_until(fd: int, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        piece = os.read(fd, 65536)
        assert piece, f"ended after {data!r}"
        data += piece
    return data


def full(pipe: tuple[int, int]) -> int:
    """Fill the pipe, so that the next write blocks; returns how many bytes that took."""
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(pipe[1], False)
    size = 0
    try:
        while True:
            size += os.write(pipe[1], b"." * 512)
    except BlockingIOError:
        os.set_blocking(pipe[1], True)
        return size


def test_lines_arrive_whole_and_in_order(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as file:
        writer = LineWriter(file.fileno(), max_pending_bytes=10**8)
        lines = [b"%d %b\n" % (number, b"x" * (number % 700)) for number in range(5000)]
        for line in lines:
            writer.write(line)
        assert writer.flush(PATIENCE)
        assert (tmp_path / "log").read_bytes() == b"".join(lines)
        assert writer.close(PATIENCE)
        assert writer.dropped == 0


def test_a_line_arrives_without_being_asked_for(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    writer.write(b"one\n")
    assert read_until(pipe[0], b"\n") == b"one\n"
    writer.close(PATIENCE)


def test_flushing_does_not_wait_for_company(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as file:
        writer = LineWriter(file.fileno())
        started = time.monotonic()
        for _ in range(20):
            writer.write(b"line\n")
            assert writer.flush(PATIENCE)
        assert time.monotonic() - started < 10 * GATHER
        assert writer.close(PATIENCE)


def test_lines_gather_for_one_write() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        writer = LineWriter(there.fileno())
        for number in range(10):
            writer.write(b"%d\n" % number)
        writer.flush(PATIENCE)
        assert here.recv(65536) == b"0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n"
        writer.close(PATIENCE)


def test_writes_to_a_pipe_are_whole_lines_small_enough_to_stay_whole() -> None:
    """Workers share a pipe; the kernel keeps PIPE_BUF bytes together, not more."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        here.settimeout(PATIENCE)
        writer = LineWriter(there.fileno())
        lines = [b"%d%b\n" % (number, b"x" * 900) for number in range(40)]
        for line in lines:
            writer.write(line)
        received: list[bytes] = []
        while sum(map(len, received)) < sum(map(len, lines)):
            received.append(here.recv(65536))
        assert b"".join(received) == b"".join(lines)
        assert all(len(piece) <= PIPE_BUF and piece.endswith(b"\n") for piece in received)
        assert len(received) == 10
        writer.close(PATIENCE)


def test_a_stalled_reader_costs_lines_and_never_time(pipe: tuple[int, int]) -> None:
    filled = full(pipe)
    writer = LineWriter(pipe[1], max_pending_bytes=100, lost_line=lost)
    writer.write(b"first\n")
    assert not writer.flush(0.05), "the thread is stuck in its write"
    started = time.monotonic()
    for _ in range(25):
        writer.write(b"123456789\n")
    assert time.monotonic() - started < 1.0
    dropped = writer.dropped
    assert dropped >= 15, "100 bytes are pending at most"
    received = read_until(pipe[0], b"123456789\n" * (25 - dropped))[filled:]
    assert sorted(received.split(b"\n")) == sorted(
        [b"", b"first", lost(dropped)[:-1]] + [b"123456789"] * (25 - dropped)
    )
    writer.write(b"again\n")
    assert read_until(pipe[0], b"again\n") == b"again\n"
    assert writer.close(PATIENCE)


def test_a_gone_reader_costs_lines_which_are_counted(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    writer = LineWriter(pipe[1])
    for _ in range(3):
        writer.write(b"line\n")
    assert writer.flush(PATIENCE)
    assert writer.dropped == 3
    assert writer.close(PATIENCE)


def test_a_full_disk_costs_lines_and_the_file_stays_made_of_lines(tmp_path: Path) -> None:
    """The limit on the size of files stands for a full disk: it also cuts the write that meets it."""
    path = tmp_path / "log"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with path.open("ab") as file:
        writer = LineWriter(file.fileno(), lost_line=lost)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (25, limits[1]))
            for _ in range(5):
                writer.write(b"123456789\n")
            assert writer.flush(PATIENCE)
            assert path.read_bytes() == b"123456789\n123456789\n12345"
            assert writer.dropped == 3
            writer.write(b"123456789\n")
            assert writer.flush(PATIENCE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, before)
        writer.write(b"after\n")
        assert writer.close(PATIENCE)
    assert path.read_bytes() == b"123456789\n123456789\n12345\nlost 4\nafter\n"


def test_a_descriptor_that_somebody_made_non_blocking_is_waited_for(pipe: tuple[int, int]) -> None:
    filled = full(pipe)
    os.set_blocking(pipe[1], False)
    writer = LineWriter(pipe[1])
    writer.write(b"line\n")
    assert not writer.flush(0.05)
    assert read_until(pipe[0], b"line\n")[filled:] == b"line\n"
    assert writer.close(PATIENCE)
    assert writer.dropped == 0


def test_closing_writes_what_is_pending(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    writer.write(b"last\n")
    assert writer.close(PATIENCE)
    os.close(pipe[1])
    assert os.read(pipe[0], 100) == b"last\n"


def test_what_a_process_says_after_closing_is_written_at_once_or_lost(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1])
    assert writer.close(PATIENCE)
    writer.write(b"why it ends\n")
    assert read_until(pipe[0], b"\n") == b"why it ends\n"
    full(pipe)
    writer.write(b"nobody reads\n")
    assert writer.dropped == 1


def test_closing_does_not_wait_for_a_stalled_reader(pipe: tuple[int, int]) -> None:
    full(pipe)
    writer = LineWriter(pipe[1])
    writer.write(b"line\n")
    assert not writer.close(0.05)
    read_until(pipe[0], b"line\n")
    assert writer.close(PATIENCE)


def test_a_line_now_is_written_or_refused_and_never_waited_for(pipe: tuple[int, int]) -> None:
    assert write_now(pipe[1], b"line\n")
    assert os.read(pipe[0], 100) == b"line\n"
    full(pipe)
    assert not write_now(pipe[1], b"line\n")
    os.close(pipe[1])
    assert not write_now(pipe[1], b"line\n")


def test_lines_of_many_threads_are_neither_lost_nor_torn(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as file:
        writer = LineWriter(file.fileno(), max_pending_bytes=10**8)

        def write(name: int) -> None:
            for _ in range(2000):
                writer.write(b"%d\n" % name)

        threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert writer.close(PATIENCE)
    lines = (tmp_path / "log").read_bytes().split()
    assert sorted(lines) == sorted([b"0", b"1", b"2", b"3"] * 2000)
