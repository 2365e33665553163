"""What every row needs: botproxy in front of a bot that may fail and one that does not, and the checker."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from botproxy.config import schema
from tests.e2e.conftest import Start, open_directory, site, start, trust, unused_port
from tests.e2e.test_life import fault_home
from tests.faults.checker import Checker
from tests.harness import Bot, Proxied, free_port

__all__ = ["fault_home", "open_directory", "site", "start", "trust", "unused_port"]

Checked = Callable[..., AbstractContextManager[Checker]]


@pytest.fixture
def healthy() -> Iterator[Bot]:
    """The bot that the checker asks."""
    with Bot() as bot:
        yield bot


@pytest.fixture
def config(site: schema.Certificate, healthy: Bot, tmp_path: Path) -> dict[str, Any]:
    """For rows that start botproxy in a way of their own, in front of the bot without faults."""
    return {
        "listen": [f"127.0.0.1:{free_port()}"],
        "plain_listen": [],
        "workers": 1,
        "state_dir": str(tmp_path / "state"),
        "admin": "off",
        "certificates": [{"chain": site.chain, "key": site.key}],
        "upstreams": {"bot": {"url": healthy.url}},
        "timeouts": {"drain": "2s"},
    }


@pytest.fixture
def front_of(start: Start, healthy: Bot) -> Start:
    """`front_of(bot.url)`: as `start`, with `/healthy` served by a bot without faults, `beside` if given."""

    def begin(to: str, *, beside: Bot | None = None, **sections: Any) -> Proxied:
        well = (beside or healthy).url
        bots = {"bot": {"url": to, **sections.pop("upstream", {})}, "healthy": {"url": well}}
        routes = [{"path": "/healthy", "upstream": "healthy"}, {"path": "/", "upstream": "bot"}]
        return start(to, upstreams=bots, routes=routes, **sections)

    return begin


@pytest.fixture
def checked(trust: ssl.SSLContext, record_property: Callable[[str, object], None]) -> Iterator[Checked]:
    """`with checked(front) as checker`: asks beside the fault, and judges at the end."""
    made: list[Checker] = []

    @contextmanager
    def watch(front: Proxied, **how: Any) -> Iterator[Checker]:
        with Checker(front.port, trust, **how) as checker:
            made.append(checker)
            yield checker
        checker.judge()

    yield watch
    assert made, "a row without a checker says nothing about others"
    record_property("failed", sum(len(checker.failures) for checker in made))
    record_property("total", sum(checker.total for checker in made))
    record_property("allowed", sum(checker.allowed for checker in made))
