"""slowhttptest, the tool that others measure themselves with (Debian package of this name)."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from tests.attacks.bill import cpu_of

MODES: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "slow head": ("/", ("-H", "-x", "24")),
        "slow body": ("/", ("-B", "-s", "8192", "-x", "10")),
        "slow read": ("/large", ("-X", "-w", "10", "-y", "20", "-n", "1", "-z", "32")),
    }
)
"""What it calls them, and the path that suits them. The numbers are those of its manual."""
_PROBE_SECONDS = 3
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_AVAILABLE = re.compile(r"service available:\s+(\w+)")


class SlowHttpTest:
    """One that runs."""

    def __init__(self, program: str, mode: str, port: int, connections: int, rate: int, seconds: int) -> None:
        path, arguments = MODES[mode]
        numbers = {"-c": connections, "-r": rate, "-l": seconds, "-p": _PROBE_SECONDS, "-i": 1}
        # Slow reading has an interval of its own.
        pairs = [(name, str(value)) for name, value in numbers.items() if (mode, name) != ("slow read", "-i")]
        flat = [word for pair in pairs for word in pair]
        self._process = subprocess.Popen(
            [program, *arguments, *flat, "-u", f"https://127.0.0.1:{port}{path}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._sent = 0
        self._cpu = 0.0
        self._said: str | None = None

    def cpu(self) -> float:
        """Seconds so far."""
        try:
            self._cpu = cpu_of([self._process.pid])
        except FileNotFoundError:
            pass  # it ended; what it had used the last time stands
        return self._cpu

    def sent(self) -> int:
        """Bytes that it wrote, TLS included."""
        try:
            text = Path(f"/proc/{self._process.pid}/io").read_text()
            self._sent = max(self._sent, int(text.partition("wchar: ")[2].partition("\n")[0]))
        except (OSError, ValueError):
            pass  # it ended
        return self._sent

    def end(self, seconds: float = 0.0) -> list[str]:
        """Wait for its end, at most so long; what its probes said of the service."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.returncode is None:
            self.sent(), self.cpu()
            try:
                self._process.wait(0.2)
            except subprocess.TimeoutExpired:
                pass  # it is still at it
        return _AVAILABLE.findall(_COLOURS.sub("", self._stop()))

    def _stop(self) -> str:
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)  # as Ctrl-C: it says what it has found
        if self._said is None:
            self._said, _ = self._process.communicate()
        return self._said


@contextmanager
def running_slowhttptest(
    program: str, mode: str, port: int, *, connections: int, rate: int, seconds: int
) -> Iterator[SlowHttpTest]:
    one = SlowHttpTest(program, mode, port, connections, rate, seconds)
    try:
        yield one
    finally:
        one.end()
