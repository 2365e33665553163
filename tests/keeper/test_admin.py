"""The admin endpoint: who may ask, how a request must look, and how an answer does."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from botproxy.errors import ConfigError
from botproxy.keeper import admin

Request = tuple[str, str, dict[str, list[str]]]


class Answering:
    """Answers everything in the same way, and remembers what was asked."""

    def __init__(self, status: int = 200, **body: Any) -> None:
        self.status = status
        self.body = body or {"said": "yes"}
        self.asked: list[Request] = []

    async def __call__(
        self, method: str, path: str, query: Mapping[str, Sequence[str]]
    ) -> tuple[int, dict[str, Any]]:
        self.asked.append((method, path, {name: list(values) for name, values in query.items()}))
        return self.status, dict(self.body)


def ask(
    path: Path, request: bytes, answer: admin.Answer | None = None, *, end: bool = False
) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer; (0, b"", b"") for none."""

    async def story() -> bytes:
        server = await admin.serve(admin.bind(path), answer or Answering())
        try:
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(request)
            if end:
                writer.write_eof()
            data = await asyncio.wait_for(reader.read(), 10)
            writer.close()
            return data
        finally:
            await server.close()

    head, _, body = asyncio.run(story()).partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, head, body


def get(target: str, method: str = "GET", fields: str = "") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n".encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


@pytest.mark.parametrize(
    ("request_bytes", "asked"),
    [
        (get("/-/live"), ("GET", "/-/live", {})),
        (get("/-/live", "HEAD"), ("GET", "/-/live", {})),
        (
            get("/-/reload?name=a&name=b&wait=1&x=", "POST"),
            ("POST", "/-/reload", {"name": ["a", "b"], "wait": ["1"], "x": [""]}),
        ),
        (get("/-/reload?name=%2a.b%3F&name=a+b", "POST"), ("POST", "/-/reload", {"name": ["*.b?", "a b"]})),
        (get("/-/reload", "POST", "Content-Length: 0\r\n"), ("POST", "/-/reload", {})),
        (get("http://localhost/-/live"), ("GET", "http://localhost/-/live", {})),
        (b"GET /-/live HTTP/1.0\r\n\r\n", ("GET", "/-/live", {})),
    ],
)
def test_method_path_and_parameters_are_asked_for(path: Path, request_bytes: bytes, asked: Request):
    answer = Answering()
    status, _, body = ask(path, request_bytes, answer)
    assert (status, answer.asked) == (200, [asked])
    assert body == (b"" if request_bytes.startswith(b"HEAD") else b'{"said": "yes"}\n')


def test_an_answer_is_json_that_nobody_keeps_and_the_last_one(path: Path):
    _, head, body = ask(path, get("/-/ready"), Answering(503, ready=False))
    fields = dict(line.lower().split(b": ", 1) for line in head.splitlines()[1:])
    assert head.startswith(b"HTTP/1.1 503 ")
    assert json.loads(body) == {"ready": False}
    assert fields == {
        b"content-type": b"application/json",
        b"content-length": b"%d" % len(body),
        b"x-content-type-options": b"nosniff",
        b"cache-control": b"no-store",
        b"connection": b"close",
    }


def test_methods_that_are_allowed_stand_in_the_head(path: Path):
    _, head, body = ask(path, get("/-/live", "PUT"), Answering(405, error="no", allow="GET, HEAD"))
    assert b"\r\nallow: get, head\r\n" in head.lower() + b"\r\n"
    assert json.loads(body) == {"error": "no"}


def test_text_of_the_world_stays_within_its_answer(path: Path):
    _, _, body = ask(path, get("/"), Answering(says='\r\n\r\n"\u2028\ud800'))
    assert json.loads(body) == {"says": '\r\n\r\n"\u2028\ud800'}
    assert body.isascii()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/-/ready", fields="Content-Length: 3\r\n"), 400),
        (get("/-/ready", fields="Transfer-Encoding: chunked\r\n"), 400),
        (get("/-/ready?" + "x=1&" * 200), 400),
        (b"GET /-/ready HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (get("/-/ready", fields="X: " + "x" * 10_000 + "\r\n"), 431),
        (b"GET /-/ready HTTP/1.1\r\n" + b"x" * 100_000, 431),
    ],
)
def test_what_is_no_request_without_a_body_is_refused_unheard(path: Path, request_bytes: bytes, status: int):
    answer = Answering()
    answered, _, body = ask(path, request_bytes, answer)
    assert (answered, answer.asked) == (status, [])
    assert list(json.loads(body)) == ["error"]


def test_an_answer_takes_as_long_as_it_takes(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admin, "DEADLINE", 0.05)

    async def answer(*_: object) -> tuple[int, dict[str, Any]]:
        await asyncio.sleep(0.2)
        return 200, {}

    assert ask(path, get("/-/reload?wait=1", "POST"), answer)[0] == 200


def test_questions_wait_while_nobody_serves_the_socket(path: Path):
    """The supervisor keeps it over the death of a keeper."""

    async def story() -> bytes:
        with admin.bind(path) as kept:
            with kept.dup() as first:
                server = await admin.serve(first, Answering())
                await server.close()
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(get("/-/live"))
            server = await admin.serve(kept.dup(), Answering())
            answered = await asyncio.wait_for(reader.read(), 10)
            writer.close()
            await server.close()
            return answered

    assert asyncio.run(story()).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_leaves_early_gets_nothing(path: Path):
    assert ask(path, b"", end=True)[0] == 0
    assert ask(path, b"GET /-/re", end=True)[0] in (0, 400)


def test_a_silent_client_is_dropped_at_the_deadline(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admin, "DEADLINE", 0.05)
    assert ask(path, b"GET /-/live HTTP/1.1\r\n")[0] == 0


def test_an_end_waits_for_answers_and_not_for_questions(path: Path):
    async def story() -> bytes:
        asked, answered = asyncio.Event(), asyncio.Event()

        async def slow(*_: object) -> tuple[int, dict[str, Any]]:
            asked.set()
            await answered.wait()
            return 200, {"said": "late"}

        server = await admin.serve(admin.bind(path), slow)
        silent, idle = await asyncio.open_unix_connection(str(path))
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(get("/-/ready"))
        await asyncio.wait_for(asked.wait(), 10)
        closing = asyncio.ensure_future(server.close())
        # Well before the deadline of a question.
        assert await asyncio.wait_for(silent.read(), admin.DEADLINE / 2) == b""
        assert not closing.done()
        answered.set()
        data = await asyncio.wait_for(reader.read(), 10)
        await closing
        idle.close()
        writer.close()
        return data

    assert b'"late"' in asyncio.run(story())


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
