"""What the service manager is told, and that its absence is no reason to fail."""

from __future__ import annotations

import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from botproxy.server.notify import Notifier

PATIENCE = 20.0


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "n") if request.param == "path" else f"@botproxy-test-{os.getpid()}"


@pytest.fixture
def manager(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        sock.settimeout(PATIENCE)
        yield sock


def told(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_every_message_is_what_sd_notify_knows(manager: socket.socket, address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
    notifier.ready("serving with 2 of 2 workers")
    assert told(manager) == ["READY=1", "STATUS=serving with 2 of 2 workers"]
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    first, stamp, status = told(manager)
    assert (first, status) == ("RELOADING=1", "STATUS=reloading")
    assert before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    notifier.alive(1.0, "serving with 1 of 2 workers")
    assert told(manager) == ["STATUS=serving with 1 of 2 workers"]
    assert told(manager) == ["WATCHDOG=1"]
    notifier.gave_way(77, "serving")
    assert told(manager) == ["MAINPID=77", "READY=1", "STATUS=serving"]
    notifier.stopping()
    assert told(manager) == ["STOPPING=1", "STATUS=stopping"]


def test_a_status_is_told_when_it_has_changed(manager: socket.socket, address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("good")
    notifier.alive(1.0, "good")
    notifier.reloading()
    for status in ("good", "bad", "bad"):
        notifier.alive(1.0, status)
    notifier.stopping()
    assert [told(manager)[0] for _ in range(4)] == ["READY=1", "RELOADING=1", "STATUS=bad", "STOPPING=1"]


def test_the_watchdog_is_fed_as_often_as_it_must_be(manager: socket.socket, address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
    for now in (100.0, 101.0, 114.9, 115.0, 116.0, 130.0):
        notifier.alive(now, "")
    notifier.stopping()
    assert [told(manager)[0] for _ in range(4)] == [*["WATCHDOG=1"] * 3, "STOPPING=1"]


def test_what_it_was_given_is_taken_from_the_environment_and_passed_to_a_successor(address: str) -> None:
    given = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "333333", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
    notifier = Notifier(given)
    assert given == {"A": "b"}
    assert notifier.watchdog == pytest.approx(0.1666665)
    # Without WATCHDOG_PID, which would be ours: it is for whoever gets this.
    assert notifier.environment() == {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "333333"}
    assert Notifier(notifier.environment()).watchdog == notifier.watchdog


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
    ],
)
def test_a_watchdog_that_is_none_or_another_process_s_is_not_fed(given: dict[str, str]) -> None:
    assert Notifier({"NOTIFY_SOCKET": "@x", **given}).watchdog is None


@pytest.mark.parametrize("given", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_a_manager_nothing_is_told(given: dict[str, str]) -> None:
    notifier = Notifier(given)
    notifier.ready("x")
    assert notifier.environment() == {}


@pytest.mark.parametrize(
    "address", ["/nonexistent/notify", "@nobody-listens-there", "/" + "x" * 200, "vsock:2:1234", "@"]
)
def test_a_manager_that_is_not_there_is_no_reason_to_fail(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("x")
    notifier.alive(0.0, "y")


def test_a_manager_that_does_not_read_does_not_hold_us_up(manager: socket.socket, address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2"})
    begun = time.monotonic()
    for second in range(2000):
        notifier.alive(float(second + 1), "")
    assert time.monotonic() - begun < PATIENCE
    assert told(manager) == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda notifier: notifier.ready("x"), "READY=1"),
        (Notifier.reloading, "RELOADING=1"),
        (Notifier.stopping, "STOPPING=1"),
        (lambda notifier: notifier.gave_way(77, "x"), "MAINPID=77"),
    ],
)
def test_a_change_waits_for_a_manager_that_is_busy(
    manager: socket.socket, address: str, change: Callable[[Notifier], None], first: str
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    pending = fill(address)
    telling = threading.Thread(target=change, args=(notifier,))
    telling.start()
    wait_until_it_waits(telling)
    for _ in range(pending):
        assert told(manager) == ["noise"]
    assert told(manager)[0] == first
    telling.join(PATIENCE)


def test_nor_does_it_wait_for_ever(manager: socket.socket, address: str) -> None:
    pending = fill(address)
    Notifier({"NOTIFY_SOCKET": address}).stopping()
    assert [told(manager) for _ in range(pending)] == [["noise"]] * pending
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        told(manager)


def fill(address: str) -> int:
    """Leave no room in the manager's queue; returns how many messages are in it."""
    pending = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            while True:
                sock.sendto(b"noise", "\0" + address[1:] if address.startswith("@") else address)
                pending += 1
        except BlockingIOError:
            return pending


def wait_until_it_waits(thread: threading.Thread) -> None:
    """Until `thread` is in poll(2), or has ended."""
    deadline = time.monotonic() + PATIENCE
    number = {"x86_64": "7", "aarch64": "73"}[platform.machine()]
    call = Path(f"/proc/self/task/{thread.native_id}/syscall")
    while thread.is_alive() and time.monotonic() < deadline:
        try:
            if call.read_text().split()[0] == number:
                return
        except OSError:
            return  # it has ended meanwhile
