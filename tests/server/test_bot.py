"""When a bot is started again, and when it is given up."""

from __future__ import annotations

import os
import select
import selectors
import signal
import time
from collections.abc import Iterator
from math import inf

import pytest

from botproxy.server.bot import MOST_FAILURES, NOT_EXECUTABLE, NOT_FOUND, Bot, exit_code
from botproxy.server.children import Children

PATIENCE = 20.0


@pytest.fixture
def children() -> Iterator[Children]:
    with selectors.DefaultSelector() as selector:
        made = Children(selector)
        yield made
        made.signal(made, signal.SIGKILL)
        for child in made:
            ended(child.pid)
        made.reap()


def ended(pid: int) -> None:
    fd = os.pidfd_open(pid)
    try:
        assert select.select([fd], [], [], PATIENCE)[0]
    finally:
        os.close(fd)


def one(children: Children, *command: str) -> Bot:
    return Bot(command or ("sleep", "1000"), children, list)


def end_of(bot: Bot, children: Children) -> int:
    """Wait for its end, and bury it."""
    assert bot.running is not None
    ended(bot.running.pid)
    [(child, code)] = children.reap()
    assert child is bot.running
    return code


def test_it_is_started_later_each_time_and_given_up_after_so_many_failures(
    children: Children, caplog: pytest.LogCaptureFixture
) -> None:
    bot = one(children, "sh", "-c", "exit 7")
    delays = []
    for _ in range(MOST_FAILURES - 1):
        bot.start()
        assert bot.start_at == inf
        code = end_of(bot, children)
        assert code == 7
        assert bot.lost(code)
        assert bot.running is None
        delays.append(bot.start_at - time.monotonic())
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6], abs=0.09)
    bot.start()
    assert not bot.lost(end_of(bot, children))
    assert bot.start_at == inf
    assert "given up" in caplog.text


def test_failures_count_from_the_last_time_it_lived_long_enough(children: Children) -> None:
    bot = one(children, "sh", "-c", "exit 7")
    for _ in range(MOST_FAILURES - 1):
        bot.start()
        assert bot.lost(end_of(bot, children))
    bot.start()
    assert bot.running is not None
    bot.running.started -= 11.0
    assert bot.lost(end_of(bot, children))
    assert bot.start_at - time.monotonic() == pytest.approx(0.1, abs=0.09)
    bot.start()
    assert bot.lost(end_of(bot, children))


def test_a_good_end_is_an_end(children: Children, caplog: pytest.LogCaptureFixture) -> None:
    bot = one(children, "true")
    bot.start()
    assert not bot.lost(end_of(bot, children))
    assert bot.start_at == inf
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("status", [NOT_FOUND, NOT_EXECUTABLE])
def test_what_cannot_be_started_at_first_is_given_up_and_later_is_tried_again(
    children: Children, status: int
) -> None:
    never = one(children, "sh", "-c", f"exit {status}")
    never.start()
    assert not never.lost(end_of(never, children))
    was_there = one(children)
    was_there.start()
    children.signal(children, signal.SIGKILL)
    assert was_there.lost(end_of(was_there, children))
    was_there.start()
    children.signal(children, signal.SIGKILL)
    end_of(was_there, children)
    assert was_there.lost(status)  # a new version of it is being put there just now, say


def test_one_that_was_told_to_end_is_not_started_again_nor_called_a_failure(
    children: Children, caplog: pytest.LogCaptureFixture
) -> None:
    bot = one(children)
    bot.start()
    bot.stop()
    assert bot.running is not None
    told = bot.running.kill_at
    assert 0 < told - time.monotonic() <= 10
    bot.stop()  # once is enough
    assert bot.running.kill_at == told
    code = end_of(bot, children)
    assert exit_code(code) == 143
    assert not bot.lost(code)
    assert bot.start_at == inf
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_one_that_ends_while_we_stop_is_not_started_again(
    children: Children, caplog: pytest.LogCaptureFixture
) -> None:
    bot = one(children, "sh", "-c", "exit 7")
    bot.start()
    assert not bot.lost(end_of(bot, children), again=False)
    assert bot.start_at == inf
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_stopping_while_it_is_away_cancels_its_start(children: Children) -> None:
    bot = one(children, "sh", "-c", "exit 7")
    bot.start()
    assert bot.lost(end_of(bot, children))
    bot.stop()
    assert bot.start_at == inf


@pytest.mark.parametrize(("code", "shown"), [(0, 0), (7, 7), (-15, 143), (-9, 137), (-11, 139)])
def test_exit_codes_are_those_of_a_shell(code: int, shown: int) -> None:
    assert exit_code(code) == shown
