"""The operator log: one line for one thing, whatever is in it."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botproxy.errors import BadRequest
from botproxy.observe import logs
from botproxy.observe.writer import PIPE_BUF, LineWriter

PAIR = r'[A-Za-z_]+=(?:[!#-<>-\[\]-~]+|"(?:[ !#-\[\]-~]|\\["\\nrt]|\\x[0-9a-f]{2}|\\u\{[0-9a-f]+\})*")'
LINE = re.compile(rf"{PAIR}(?: {PAIR})*\n")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging is global: give it back as it was."""
    root, ours = logging.getLogger(), logging.getLogger("botproxy")
    before = root.handlers[:], root.level, ours.level, logging.raiseExceptions
    yield
    logging.captureWarnings(False)
    root.handlers[:], logging.raiseExceptions = before[0], before[3]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def formatted(
    message: str, *, name: str = "botproxy.server.worker", error: BaseException | None = None, **data: object
) -> str:
    record = logging.LogRecord(name, logging.WARNING, "", 0, message, None, None)
    record.created = 1795464001.0426
    record.data = data
    if error is not None:
        record.exc_info = (type(error), error, error.__traceback__)
    line = logs.format_record(record, "worker 0").decode("ascii")
    assert LINE.fullmatch(line), line
    return line


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    with pytest.raises(type(error)) as caught:
        raise error from cause
    return caught.value


def test_a_line_has_time_level_process_place_message_and_data() -> None:
    line = formatted(
        "certificate loaded", name_of="bot.example", days=30, ok=True, note="two words", none=None
    )
    assert line == (
        'time=2026-11-23T20:00:01.042Z level=warning process="worker 0" at=server.worker '
        'msg="certificate loaded" name_of=bot.example days=30 ok=true note="two words" none=None\n'
    )


def test_values_are_escaped_and_capped() -> None:
    line = formatted("x", value='a\nb\r\t"\\\x1b[1m\x00\xe9\u2028\U0001f600', raw=b"\xff\n", empty="")
    assert r'value="a\nb\r\t\"\\\x1b[1m\x00\xe9\u{2028}\u{1f600}" raw="\xff\n" empty=""' in line
    assert len(formatted("x", value="y" * 100_000)) < 2 * logs.VALUE_LIMIT


@pytest.mark.parametrize("character", ["\n", "\xe9", "\U0001f600", '"', "\\"])
def test_no_escape_is_cut_in_two(character: str) -> None:
    for length in range(logs.VALUE_LIMIT - 12, logs.VALUE_LIMIT + 2):
        assert formatted("x", value="y" * length + character * 3).count("y") == length - max(
            0, length - logs.VALUE_LIMIT
        )


def test_a_line_fits_into_one_write_to_a_pipe() -> None:
    data: dict[str, Any] = {f"value_{letter}": "y" * 400 for letter in "abcdefghijklmnopqrst"}
    line = formatted("x", **data)
    assert 3500 < len(line) <= PIPE_BUF


@given(st.text(max_size=100), st.one_of(st.text(), st.binary(), st.floats(), st.integers(), st.booleans()))
def test_no_value_forges_a_line_or_a_pair(message: str, value: object) -> None:
    formatted(message, value=value)


def test_an_exception_is_one_line_that_says_where() -> None:
    line = formatted("request failed", error=raised(OSError(2, "No such file", "/x")))
    assert "error=\"FileNotFoundError: [Errno 2] No such file: '/x'\"" in line
    assert re.search(r"error_trace=observe/test_logs\.py:[0-9]+:raised\n", line)


@pytest.mark.parametrize("kind", [ValueError, KeyError, RuntimeError, Exception])
def test_the_text_of_an_exception_that_may_quote_a_client_is_withheld(kind: type[Exception]) -> None:
    """h11 and codecs put the bytes they dislike into their messages."""
    line = formatted("request failed", error=raised(TypeError("ours"), raised(kind("b'CANARY'"))))
    assert "CANARY" not in line
    assert f"error_cause={kind.__name__} " in line
    assert 'error="TypeError: ours"' in line


def test_the_text_of_our_own_exceptions_is_ours() -> None:
    assert 'error="BadRequest: two Host fields"' in formatted(
        "x", error=raised(BadRequest("two Host fields"))
    )


def test_a_deep_traceback_keeps_its_innermost_frames() -> None:
    def dive(depth: int) -> None:
        if not depth:
            raise OSError("deep")
        dive(depth - 1)

    with pytest.raises(OSError, match="deep") as caught:
        dive(200)
    line = formatted("x", error=caught.value)
    assert re.search(rf'error_trace="observe/test_logs.py:{caught.traceback[-1].lineno + 1}:dive <', line)
    assert len(line) < 1500


def test_a_library_is_heard_by_its_first_line_only() -> None:
    """Behind it asyncio prints objects, with their contents."""
    line = formatted("Task was destroyed\ntask: <Task b'CANARY'>", name="asyncio")
    assert 'at=asyncio msg="Task was destroyed"' in line
    assert "CANARY" not in line
    assert r'msg="one\ntwo"' in formatted("one\ntwo")


def test_setup_sends_to_stderr_what_is_above_the_level(capfd: pytest.CaptureFixture[str]) -> None:
    logs.setup("info", process="supervisor")
    logger = logging.getLogger("botproxy.server.supervisor")
    logger.debug("hidden")
    logger.info("shown", extra={"data": {"a": 1}})
    logging.getLogger("library").info("hidden")
    logging.getLogger("library").warning("heard %s", "too")
    lines = capfd.readouterr().err.splitlines(keepends=True)
    assert len(lines) == 2
    assert all(LINE.fullmatch(line) and "process=supervisor" in line for line in lines)
    assert "msg=shown a=1\n" in lines[0]
    assert 'msg="heard %s"' in lines[1]


def test_warnings_of_python_are_for_debugging(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.setup("info")
        warnings.warn("careful", stacklevel=1)
        assert capfd.readouterr().err == ""
        logs.setup("debug")
        warnings.warn("careful", stacklevel=1)
        assert "careful" in capfd.readouterr().err


def test_debug_shows_our_steps_and_not_those_of_libraries(capfd: pytest.CaptureFixture[str]) -> None:
    logs.setup("debug")
    logging.getLogger("botproxy.http").debug("step")
    logging.getLogger("library").debug("hidden")
    assert capfd.readouterr().err.count("\n") == 1


def test_setup_twice_says_everything_once(capfd: pytest.CaptureFixture[str]) -> None:
    logs.setup("info")
    logs.setup("error")
    logging.getLogger("botproxy.x").warning("hidden")
    logging.getLogger("botproxy.x").error("shown")
    assert capfd.readouterr().err.count("\n") == 1


def test_a_worker_logs_through_its_writer(capfd: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing, lost_line=logs.lost_line)
    logs.setup("info", writer, "worker 3")
    logging.getLogger("botproxy.x").info("ready")
    assert writer.close(5.0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read().endswith(' level=info process="worker 3" at=x msg=ready\n')
    assert capfd.readouterr().err == ""


def test_lines_that_a_writer_lost_are_told_of_in_the_same_form() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing, max_pending_bytes=1)
    logs.setup("info", writer)
    logging.getLogger("botproxy.x").info("finds no room")
    assert writer.dropped == 1
    assert writer.close(5.0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        line = pipe.read()
    assert LINE.fullmatch(line)
    assert line.endswith(' level=warning msg="log lines lost" count=1\n')


def test_a_closed_stderr_is_no_reason_to_fail() -> None:
    saved = os.dup(2)
    os.close(2)
    try:
        logs.setup("info")
        logging.getLogger("botproxy.x").error("unheard")
    finally:
        os.dup2(saved, 2)
        os.close(saved)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logger(clock: Clock) -> Iterator[logging.Logger]:
    logger = logging.getLogger("botproxy.repeating")
    handler = logs.LineHandler(None, clock=clock)
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.removeHandler(handler)
    logger.propagate = True


def test_a_repeating_warning_is_held_back_and_says_so(
    logger: logging.Logger, clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(100):
        logger.warning("bad PROXY header", extra={"data": {"peer": number}})
    logger.warning("something else")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == logs.REPEATS + 1
    clock.now += logs.WINDOW
    logger.info("anything")
    logger.warning("bad PROXY header")
    lines = capfd.readouterr().err.splitlines()
    assert [line.rpartition("msg=")[2] for line in lines] == [
        f'"bad PROXY header" suppressed={100 - logs.REPEATS}',
        "anything",
        '"bad PROXY header"',
    ]


def test_state_changes_are_never_held_back(logger: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(logs.REPEATS * 3):
        logger.info("certificate loaded")
    assert capfd.readouterr().err.count("\n") == logs.REPEATS * 3


def test_what_is_held_back_at_the_end_is_told_at_the_end(
    logger: logging.Logger, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(logs.REPEATS + 5):
        logger.error("failed")
    capfd.readouterr()
    logger.handlers[0].close()
    assert capfd.readouterr().err.endswith("msg=failed suppressed=5\n")


def test_phrases_that_are_not_constant_push_out_what_is_held_back(
    logger: logging.Logger, capfd: pytest.CaptureFixture[str]
) -> None:
    """The table of phrases is bounded; what it forgets, it tells of."""
    for _ in range(logs.REPEATS + 5):
        logger.warning("often")
    for number in range(300):
        logger.warning("phrase " + str(number))  # noqa: G003 - as libraries do
    assert capfd.readouterr().err.count("msg=often suppressed=5\n") == 1
