"""Lines on their way to a file descriptor that may be slow, full or gone.

A line costs its writer an append; a thread of ours does the blocking writes, about
ten times a second. Lines that find no room or no reader are lost, counted, and
told of in a line of their own once writing works again. A request never waits
for a log and never fails because of one. To be made after the last fork; before
it, and after the end of a `LineWriter`, `write_now` takes the rare line.

Before: `observe.logs`, `observe.access` through `server.worker`.
"""

from __future__ import annotations

import os
import select
import stat
import threading
from collections.abc import Callable, Iterator

from botproxy.observe import access

GATHER = 0.1
"""Seconds that lines wait for company."""
ENOUGH = 64 * 1024
"""Bytes that are written without waiting for more, and at most at once."""
PIPE_BUF = 4096
"""Bytes that reach a pipe in one piece, so that workers that share it never mix their lines (pipe(7))."""


def write_now(fd: int, line: bytes) -> bool:
    """Write a line of at most `PIPE_BUF` bytes from the caller's thread; False when it would wait or fails.

    A process that only ever logs a few lines must not stop because nobody reads them.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    try:
        return bool(poll.poll(0)) and os.write(fd, line) == len(line)
    except OSError:
        return False


class LineWriter:
    """A bounded queue of lines in front of `fd`, which stays its owner's."""

    def __init__(
        self,
        fd: int,
        *,
        max_pending_bytes: int = 1024 * 1024,
        lost_line: Callable[[int], bytes] = access.lost_line,
    ) -> None:
        """`lost_line`: what to write about that many lost lines; may be changed later."""
        self._fd = fd
        self._limit = max_pending_bytes
        self.lost_line = lost_line
        mode = os.fstat(fd).st_mode
        self._chunk = PIPE_BUF if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else ENOUGH
        self.dropped = 0
        """Lines lost so far."""
        self._pending: list[bytes] = []
        self._size = 0
        self._urgent = False
        self._closed = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # Of the thread alone, but for `_writing`.
        self._writing = False
        self._told = 0
        self._torn = False
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Take a line, which ends in its only line feed. Never waits, never raises."""
        with self._lock:
            size = self._size + len(line)
            if self._closed:  # what a process says last is why it ends
                self.dropped += not write_now(self._fd, line)
                return
            if size > self._limit:
                self.dropped += 1
                return
            self._pending.append(line)
            self._size = size
            if size == len(line):
                self._changed.notify_all()
            elif size >= ENOUGH and not self._urgent:
                self._urgent = True
                self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until every line taken is written or lost; False if that takes above `timeout` seconds."""
        with self._lock:
            self._urgent = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._pending and not self._writing, timeout)

    def close(self, timeout: float) -> bool:
        """As `flush`; lines that come later are written at once or lost. The descriptor stays open."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # The thread

    def _run(self) -> None:
        while not self._closed or self._pending:
            with self._lock:
                self._changed.wait_for(lambda: self._pending or self._closed)
                self._changed.wait_for(lambda: self._urgent or self._closed, GATHER)
                lines, self._pending, self._size = self._pending, [], 0
                self._urgent = False
                self._writing = True
            for chunk in self._chunks(lines):
                self._write_chunk(chunk)
            self._mend()
            with self._lock:
                self._writing = False
                self._changed.notify_all()

    def _chunks(self, lines: list[bytes]) -> Iterator[list[bytes]]:
        """Whole lines, as many as go into one write."""
        chunk: list[bytes] = []
        size = 0
        for line in lines:
            if chunk and size + len(line) > self._chunk:
                yield chunk
                chunk, size = [], 0
            chunk.append(line)
            size += len(line)
        if chunk:
            yield chunk

    def _write_chunk(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        written = self._write(data) if self._mend() else 0
        if written < len(data):
            with self._lock:
                self.dropped += data.count(b"\n", written)
            if written:
                self._torn = not data.endswith(b"\n", 0, written)

    def _mend(self) -> bool:
        """End a line that was cut, and tell of lines that were lost; False if that failed too."""
        lost = self.dropped - self._told
        data = (b"\n" if self._torn else b"") + (self.lost_line(lost) if lost else b"")
        written = self._write(data)
        if written < len(data):
            if written:
                self._torn = not data.endswith(b"\n", 0, written)
            return False
        self._told += lost
        self._torn = False
        return True

    def _write(self, data: bytes) -> int:
        """Bytes written, less than all of `data` when the descriptor fails."""
        written = 0
        while written < len(data):
            try:
                written += os.write(self._fd, memoryview(data)[written:])
            except BlockingIOError:  # whoever shares the descriptor made it non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
            except OSError:
                break
        return written
