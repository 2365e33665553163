"""The operator log: one `key=value` line for each thing that somebody who runs us should know.

A message is a constant phrase; data goes into `extra={"data": {...}}` and becomes
pairs behind it. Everything is escaped to printable ASCII and capped, so that no
byte of a peer can forge a line. Exceptions show where they happened, and say what
only where their text cannot hold input. A phrase that repeats is held back.

Set up once in each process. After: `observe.writer` in workers, stderr elsewhere.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath

from botproxy.observe.access import timestamp
from botproxy.observe.writer import PIPE_BUF, LineWriter, write_now

VALUE_LIMIT = 500
"""Characters of one value, escapes counted as they are written."""
TRACE_LIMIT = 1000
"""The same, of where an exception happened."""
TRACE_DEPTH = 20
"""Innermost frames shown of a traceback."""
REPEATS = 10
"""Warnings and errors of one phrase that are shown within `WINDOW` seconds."""
WINDOW = 10.0
_PHRASES = 256
"""Phrases counted at once; libraries may not keep theirs constant."""

_STDERR = 2
_BARE = re.compile(r"[!#-<>-\[\]-~]+")
_UNSAFE = re.compile(r"[^ !#-\[\]-~]")
_WHOLE = re.compile(r"(?:[^\\]|\\x..|\\u\{[0-9a-f]+\}|\\[^xu])*")
_DATA = re.compile(r"[\n<({\['\"]")
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
_TELLING = (OSError, AttributeError, NameError, TypeError, ImportError)
"""Exceptions whose text is about names and files; that of others may quote what a client sent."""


def setup(level: str, writer: LineWriter | None = None, process: str = "") -> None:
    """Send every log record of this process to `writer`, or to stderr when there is none.

    `level`: "debug", "info", "warning" or "error". `process` names the process in every line.
    Libraries are heard from warning on, and warnings of Python are for debugging only.
    """
    logging.raiseExceptions = False  # it would print the record with all its data, unescaped
    root = logging.getLogger()
    if writer is not None:
        writer.lost_line = lost_line
    root.handlers[:] = [LineHandler(writer, process)]
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
    logging.getLogger("botproxy").setLevel(level.upper())
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").disabled = level != "debug"


def lost_line(count: int) -> bytes:
    """What a LineWriter of the operator log writes about lines that were lost."""
    return f'time={timestamp(time.time())} level=warning msg="log lines lost" count={count}\n'.encode("ascii")


class LineHandler(logging.Handler):
    """Formats records, holds back phrases that repeat, and hands the others on."""

    def __init__(
        self, writer: LineWriter | None, process: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._writer = writer
        self._process = process
        self._clock = clock
        self._repeats: dict[Phrase, _Repeat] = {}
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        now = self._clock()
        self._tell_of_repeats(now - WINDOW)
        if record.levelno >= logging.WARNING:
            if len(self._repeats) >= _PHRASES:
                self._tell_of_repeats(now)
            repeat = self._repeats.setdefault(_phrase(record), _Repeat(now, record.levelno))
            if repeat.shown >= REPEATS:
                repeat.suppressed += 1
                return
            repeat.shown += 1
        self._hand_on(record)

    def close(self) -> None:
        """Tell of what is held back still."""
        self._tell_of_repeats(self._clock())
        super().close()

    def _tell_of_repeats(self, until: float) -> None:
        """Forget phrases that were first heard by then, and say how often they were held back."""
        over = [key for key, repeat in self._repeats.items() if repeat.since <= until]
        for name, phrase, subject in over:
            repeat = self._repeats.pop((name, phrase, subject))
            if repeat.suppressed:
                record = logging.LogRecord(name, repeat.level, "", 0, phrase, None, None)
                if subject:
                    record.__dict__["data"] = {"certificate": subject}
                self._hand_on(record, repeat.suppressed)

    def _hand_on(self, record: logging.LogRecord, suppressed: int = 0) -> None:
        line = format_record(record, self._process, suppressed)
        if self._writer is not None:
            self._writer.write(line)
            return
        if self._lost and write_now(_STDERR, lost_line(self._lost)):
            self._lost = 0
        if self._lost or not write_now(_STDERR, line):
            self._lost += 1


Phrase = tuple[str, str, str]
"""Logger, message, and the certificate it is about: what is said of one must not hide another's."""


@dataclass(slots=True)
class _Repeat:
    """How often a phrase was shown since a moment, and how often it was not."""

    since: float
    level: int
    shown: int = 0
    suppressed: int = 0


def format_record(record: logging.LogRecord, process: str = "", suppressed: int = 0) -> bytes:
    """The line of a record. `suppressed`: how many like it were held back."""
    pairs: list[tuple[str, object]] = [("level", record.levelname.lower())]
    if process:
        pairs.append(("process", process))
    pairs.append(("at", record.name.removeprefix("botproxy.")))
    pairs.append(("msg", _message(record)))
    pairs += getattr(record, "data", {}).items()
    if suppressed:
        pairs.append(("suppressed", suppressed))
    if record.exc_info and record.exc_info[1] is not None:
        pairs += _exception(record.exc_info[1])
    line = f"time={timestamp(record.created)}"
    for key, value in pairs:
        pair = f" {key}={_value(value, TRACE_LIMIT if key.endswith('trace') else VALUE_LIMIT)}"
        if len(line) + len(pair) < PIPE_BUF:  # what is longer might be torn by another process
            line += pair
    return f"{line}\n".encode("ascii")


# Private


def _phrase(record: logging.LogRecord) -> Phrase:
    data = getattr(record, "data", {})
    return record.name, str(record.msg), str(data.get("certificate", ""))


def _message(record: logging.LogRecord) -> str:
    if record.name.startswith("botproxy"):
        return record.getMessage()
    if record.name == "py.warnings":
        return str(record.args[0] if isinstance(record.args, tuple) and record.args else record.msg)
    # Libraries print objects, and with them whatever a client sent.
    return _DATA.split(str(record.msg), maxsplit=1)[0].strip()


def _exception(error: BaseException) -> Iterator[tuple[str, object]]:
    """What an exception is, and each that it came from, without text that may quote a client."""
    name = "error"
    seen: BaseException | None = error
    while seen is not None and name.count("cause") < 3:
        kind = type(seen)
        tells = issubclass(kind, _TELLING) or kind.__module__.startswith("botproxy.")
        yield name, f"{kind.__name__}: {seen}" if tells else kind.__name__
        frames = list(traceback.walk_tb(seen.__traceback__))[: -TRACE_DEPTH - 1 : -1]  # innermost first
        yield (
            f"{name}_trace",
            " < ".join(
                f"{'/'.join(PurePath(frame.f_code.co_filename).parts[-2:])}:{number}:{frame.f_code.co_name}"
                for frame, number in frames
            ),
        )
        name = f"{name}_cause"
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _value(value: object, limit: int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes | bytearray):
        value = value.decode("latin-1")
    text = str(value)
    shown = _UNSAFE.sub(_escape, text[:limit])
    if len(text) > limit or len(shown) > limit:
        whole = _WHOLE.match(shown, 0, limit)  # no half of an escape
        shown = f"{whole[0] if whole else ''}..."
    return shown if _BARE.fullmatch(shown) else f'"{shown}"'


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    if character in _NAMED:
        return _NAMED[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{{{code:x}}}"
