"""How a process does is seen by the others: beats, lateness, memory, and nothing of those who ended."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from botproxy.control.vitals import BEAT, Pulse, Vital, Vitals


@pytest.fixture
def vitals() -> Vitals:
    return Vitals(3)


def test_what_a_seat_writes_is_found_by_its_process(vitals: Vitals):
    vitals.write(1, 17.5, 0.25, 4096, 4711)
    assert vitals.of(4711) == Vital(0.25, 4096)
    assert [vitals.last_beat(seat) for seat in range(3)] == [0.0, 17.5, 0.0]
    assert vitals.of(4712) is None


def test_a_seat_that_is_free_again_tells_nothing_of_the_one_before(vitals: Vitals):
    vitals.write(1, 17.5, 0.25, 4096, 4711)
    vitals.forget(1)
    assert (vitals.of(4711), vitals.last_beat(1)) == (None, 0.0)


def test_another_process_sees_it(vitals: Vitals):
    pid = os.fork()
    if pid == 0:
        vitals.write(2, 1.5, 0.0, 1, os.getpid())
        os._exit(0)
    os.waitpid(pid, 0)
    assert (vitals.of(pid), vitals.last_beat(2)) == (Vital(0.0, 1), 1.5)


def test_a_loop_that_is_held_up_shows_lag_and_memory(vitals: Vitals):
    async def main() -> None:
        beats = asyncio.Semaphore(0)
        Pulse(vitals, 0).start(asyncio.get_running_loop(), lambda _: beats.release())
        await beats.acquire()
        time.sleep(BEAT + 0.3)  # noqa: ASYNC251 what a hanging call does
        await beats.acquire()

    pid = os.fork()
    if pid == 0:
        asyncio.run(main())
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    vital = vitals.of(pid)
    assert vital is not None
    assert vital.lag >= 0.3
    assert vital.memory > 1024 * 1024
