"""The admin endpoint: what it answers, to whom, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from botproxy.errors import ConfigError
from botproxy.keeper import admin
from botproxy.keeper.admin import CertificateReport, Report, WorkerReport

READY = Report(
    ready=True,
    workers=(WorkerReport(0, 70, 1),),
    certificates=(CertificateReport(("a.test",), "2030-01-01T00:00:00+00:00", "ab"),),
)
WAITING = Report(ready=False, workers=(WorkerReport(0, None, None),), certificates=())


def ask(path: Path, request: bytes, report: Report = READY, *, end: bool = False) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer; (0, b"", b"") for none."""

    async def story(connect: Callable[[], Awaitable[bytes]]) -> bytes:
        server = await admin.serve(admin.bind(path), lambda: report)
        try:
            return await asyncio.wait_for(connect(), 10)
        finally:
            server.close()

    async def connect() -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(request)
        if end:
            writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer

    head, _, body = asyncio.run(story(connect)).partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, head, body


def get(target: str, method: str = "GET", fields: str = "") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


def test_live_is_answered_whatever_the_workers_do(path: Path):
    status, _, body = ask(path, get("/-/live"), WAITING)
    assert (status, json.loads(body)) == (200, {"live": True})


def test_ready_shows_workers_and_certificates(path: Path):
    status, head, body = ask(path, get("/-/ready"))
    assert status == 200
    assert json.loads(body) == {
        "ready": True,
        "workers": [{"slot": 0, "pid": 70, "generation": 1}],
        "certificates": [
            {"names": ["a.test"], "not_after": "2030-01-01T00:00:00+00:00", "fingerprint": "ab"}
        ],
    }
    assert b"connection: close" in head.lower()


def test_not_ready_is_503_with_the_same_report(path: Path):
    status, _, body = ask(path, get("/-/ready"), WAITING)
    assert status == 503
    assert json.loads(body)["workers"] == [{"slot": 0, "pid": None, "generation": None}]


def test_head_is_get_without_the_body(path: Path):
    status, head, body = ask(path, get("/-/ready", "HEAD"))
    assert (status, body) == (200, b"")
    assert b"content-length: " in head.lower()


def test_http_1_0_without_host_is_answered(path: Path):
    assert ask(path, b"GET /-/live HTTP/1.0\r\n\r\n")[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/"), 404),
        (get("/-/ready?x"), 404),
        (get("/-/ready/"), 404),
        (get("/-/ready", "POST"), 405),
        (get("/-/ready", "DELETE"), 405),
        (get("/-/ready", fields="Content-Length: 3\r\n"), 400),
        (get("/-/ready", fields="Transfer-Encoding: chunked\r\n"), 400),
        (b"GET /-/ready HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (get("/-/ready", fields="X: " + "x" * 10_000 + "\r\n"), 431),
        (b"GET /-/ready HTTP/1.1\r\n" + b"x" * 100_000, 431),
    ],
)
def test_anything_else_is_refused(path: Path, request_bytes: bytes, status: int):
    answered, _, body = ask(path, request_bytes)
    assert answered == status
    assert b"70" not in body


def test_a_client_that_leaves_early_gets_nothing(path: Path):
    assert ask(path, b"", end=True)[0] == 0
    assert ask(path, b"GET /-/re", end=True)[0] in (0, 400)


def test_a_silent_client_is_dropped_at_the_deadline(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admin, "DEADLINE", 0.05)
    assert ask(path, b"GET /-/live HTTP/1.1\r\n")[0] == 0


def test_only_the_owner_may_connect(path: Path):
    with admin.bind(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_umask_is_as_before(path: Path):
    before = os.umask(0o022)
    try:
        admin.bind(path).close()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_a_socket_that_nobody_answers_on_is_replaced(path: Path):
    admin.bind(path).close()
    assert path.exists()
    assert ask(path, get("/-/live"))[0] == 200


def test_a_socket_that_somebody_answers_on_is_kept(path: Path):
    with admin.bind(path):
        with pytest.raises(ConfigError, match="another process answers") as caught:
            admin.bind(path)
        assert caught.value.problems[0].path == "admin"
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))


def test_a_file_at_the_path_is_kept(path: Path):
    path.write_text("mine")
    with pytest.raises(ConfigError, match="no socket"):
        admin.bind(path)
    assert path.read_text() == "mine"


def test_a_path_beyond_107_bytes_is_refused_with_a_hint(tmp_path: Path):
    longest = tmp_path / ("x" * (107 - len(str(tmp_path)) - 1))
    admin.bind(longest).close()
    with pytest.raises(ConfigError, match="107 bytes") as caught:
        admin.bind(Path(f"{longest}x"))
    assert "unix:/run" in (caught.value.problems[0].hint or "")


def test_a_missing_directory_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="No such file"):
        admin.bind(tmp_path / "none" / "admin.sock")
