"""What operators rely on: logs as whole processes write them, on descriptors as they are, without secrets."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest

from botproxy.model import Peer, Record, TlsInfo
from botproxy.observe import access, logs
from botproxy.observe.writer import PIPE_BUF, LineWriter

PATIENCE = 10.0
PEER = Peer("192.0.2.1", 50000, 443)


def shown(**values: Any) -> dict[str, Any]:
    """The line of a request, which must be one, printable and fit into one write, read back."""
    record = Record("0f5c", PEER, PEER.address, 1.0)
    for name, value in values.items():
        assert hasattr(record, name)
        setattr(record, name, value)
    line = access.line(record, 0.0)
    assert re.fullmatch(rb"[ -~]+\n", line)
    assert len(line) <= PIPE_BUF
    return dict(json.loads(line))


def line_with(**data: object) -> str:
    """A line of the operator log."""
    record = logging.LogRecord("botproxy.x", logging.INFO, "", 0, "phrase", None, None)
    record.data = data
    return logs.format_record(record).decode("ascii")


def read_to_end(fd: int, at_once: int) -> bytes:
    return b"".join(iter(lambda: os.read(fd, at_once), b""))


# Descriptors


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_processes_that_share_a_descriptor_never_mix_their_lines(kind: str) -> None:
    near, far = os.pipe() if kind == "pipe" else (end.detach() for end in socket.socketpair())
    lines = [mark * 300 + b"\n" for mark in (b"a", b"b", b"c")]
    children = []
    for line in lines:
        pid = os.fork()
        if pid == 0:
            writer = LineWriter(far)
            for _ in range(2000):
                writer.write(line)
            os._exit(0 if writer.close(PATIENCE) and not writer.dropped else 1)
        children.append(pid)
    os.close(far)
    # Small pieces: there is rarely room for more than one write, so that all always wait for it.
    seen = Counter(read_to_end(near, at_once=1500).splitlines(keepends=True))
    os.close(near)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert seen == dict.fromkeys(lines, 2000)


def test_a_full_device_costs_lines_only() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(fd)
    for _ in range(10):
        writer.write(b"no room\n")
    assert writer.close(PATIENCE)
    os.close(fd)
    assert writer.dropped == 10


def test_a_lone_line_is_out_within_a_fifth_of_a_second() -> None:
    near, far = os.pipe()
    writer = LineWriter(far)
    delays = []
    for _ in range(5):
        started = time.monotonic()
        writer.write(b"a line\n")
        assert os.read(near, 100) == b"a line\n"
        delays.append(time.monotonic() - started)
    assert writer.close(PATIENCE)
    os.close(near)
    os.close(far)
    assert min(delays) < 0.2


PROGRAM = """
import logging, os, sys, warnings
from botproxy.observe import logs
logs.setup("info", process="supervisor")
warnings.warn("raw text")
for number in range(int(sys.argv[1])):
    logging.getLogger("botproxy.x").info("phrase", extra={"data": {"number": number}})
os.write(1, b"done")
"""


def test_a_process_without_a_writer_logs_to_stderr_and_nothing_else_does() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, "2"], capture_output=True, timeout=60, check=True)
    lines = [line.partition(" ")[2] for line in ended.stderr.decode().splitlines()]
    assert lines == [f"level=info process=supervisor at=x msg=phrase number={number}" for number in (0, 1)]


def test_a_stderr_that_nobody_reads_stops_no_process() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "5000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    try:
        # The end of stdout is the end of the process, which must not wait for room in stderr.
        assert os.read(process.stdout.fileno(), 100) == b"done"
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()


RETURNING = """
import logging, os, sys
from botproxy.observe import logs
logs.setup("info")
for _ in range(5000):
    logging.getLogger("botproxy.x").info("phrase")
os.write(1, b"full")
os.read(0, 1)
logging.getLogger("botproxy.x").info("again")
"""


def test_lines_lost_without_a_writer_are_told_of_once_stderr_is_read_again() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RETURNING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert os.read(process.stdout.fileno(), 100) == b"full"
        seen = os.read(process.stderr.fileno(), 1 << 20)  # all there is, for the process waits for us
        process.stdin.write(b".")
        process.stdin.close()
        lines = (seen + process.stderr.read()).decode().splitlines()
    counts = [int(line.rpartition("=")[2]) for line in lines if 'msg="log lines lost"' in line]
    assert len(counts) == 1
    assert sum("msg=phrase" in line for line in lines) + counts[0] == 5000
    assert lines[-1].endswith("msg=again")


# Secrets and hostile bytes


@pytest.mark.parametrize(
    ("target", "secret"),
    [
        (b"/bot123456:AAEhBOweik6ad9r_QXMENQjcrGbqCr4K-bc/sendMessage", "AAEhBOweik6ad9r"),
        (b"/api/webhooks/123456789012345678/abcDEF-ghi_JKL012345678901234567890", "abcDEF-ghi"),
        (b"/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX", "XXXXXXXX"),
        (b"/hook/0123456789abcdef0123456789abcdef", "0123456789abcdef"),
        (b"/hook/123456%3AAAEhBOweik6ad9r_QXMENQ", "AAEhBOweik6ad9r"),
        (b"/hook?secret_token=s3cr3t-value", "s3cr3t"),
        (b"/" + b"a/" * 300 + b"0123456789abcdef0123456789abcdef", "0123456789abcdef"),
    ],
)
def test_secrets_in_a_path_are_masked(target: bytes, secret: str) -> None:
    assert secret not in json.dumps(shown(target=target))


@pytest.mark.parametrize(
    "bad", [b"\x1b[2J", b"\r\n", b"\x00", "\u2028".encode(), b"\xff\xfe", b'"},{"', b"\\", b"\x7f"]
)
def test_no_byte_of_a_client_acts_on_a_terminal_or_forges_a_line(bad: bytes) -> None:
    text = bad.decode("latin-1")
    tls = TlsInfo("TLSv1.3", "x", text, False, 0.1, False)
    read = shown(tls=tls, method=bad, target=b"/" + bad, client=text, id=text, detail=text)
    assert read["method"] == read["sni"] == read["client"] == read["id"] == read["detail"] == text
    handshake = access.handshake_line(text, text, text, 0.1, 0.0)
    assert re.fullmatch(rb"[ -~]+\n", handshake)
    assert json.loads(handshake)["sni"] == text


def test_64_kb_of_anything_are_capped() -> None:
    long = "x" * 65536
    tls = TlsInfo("TLSv1.3", "x", long, False, 0.1, False)
    read = shown(tls=tls, method=long.encode(), target=b"/" + long.encode(), detail=long, id=long)
    assert all(len(value) < 600 for value in read.values() if isinstance(value, str))


@pytest.mark.parametrize(
    ("unit", "once"),
    [("x", "x"), ("\x1b", r"\x1b"), ("\U0001f916", r"\u{1f916}"), ("\\", r"\\"), ('"', r"\"")],
)
def test_a_long_value_of_the_operator_log_ends_with_a_whole_escape(unit: str, once: str) -> None:
    line = line_with(value=unit * 65536, beside=1)
    found = re.fullmatch(r'.* value="?((?:[^"\\]|\\.)*?)\.\.\."? beside=1\n', line)
    assert found, line
    assert found[1] == once * (logs.VALUE_LIMIT // len(once))


def test_a_line_of_the_operator_log_fits_into_one_write() -> None:
    line = line_with(**{f"key{number}": "\x1b" * 1000 for number in range(20)})
    assert "key0=" in line
    assert len(line) <= PIPE_BUF
