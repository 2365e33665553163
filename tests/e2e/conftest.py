"""A botproxy for each test, or one for a whole file, with a certificate that the client trusts."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from botproxy.config import schema
from tests.certs import Authority
from tests.harness import Proxied, free_port, running

Start = Callable[..., Proxied]


@pytest.fixture(scope="session")
def site(ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> schema.Certificate:
    """The certificate that is served unless a test says otherwise."""
    return ca.issue("localhost", "bot.example.com", "127.0.0.1", "::1").write(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def trust(ca: Authority) -> ssl.SSLContext:
    return ca.trust()


@pytest.fixture
def unused_port() -> int:
    return free_port()


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that workers may enter, whatever account they run as; short enough for Unix sockets."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


def starter(stack: ExitStack, site: schema.Certificate, directories: pytest.TempPathFactory) -> Start:
    def start(
        to: str,
        *,
        env: dict[str, str] | None = None,
        descriptors: int | None = None,
        ends_with: int = 0,
        **sections: Any,
    ) -> Proxied:
        """botproxy in front of the bot at `to`; `sections` replace those of the configuration.

        `upstream` and `route` are for the only ones there are.
        """
        config: dict[str, Any] = {
            "listen": [f"127.0.0.1:{free_port()}"],
            "plain_listen": [],
            "workers": 1,
            "state_dir": str(directory := directories.mktemp("botproxy")),
            "admin": "off",
            "certificates": [{"chain": site.chain, "key": site.key}],
            "upstreams": {"bot": {"url": to, **sections.pop("upstream", {})}},
            "timeouts": {"drain": "2s", **sections.pop("timeouts", {})},
            **sections,
        }
        Path(directory).chmod(0o755)
        return stack.enter_context(
            running(config, Path(directory), ends_with, env=env, descriptors=descriptors)
        )

    return start


@pytest.fixture
def start(site: schema.Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """`start(bot.url, limits={...})`: a botproxy that ends with the test."""
    with ExitStack() as stack:
        yield starter(stack, site, tmp_path_factory)


@pytest.fixture(scope="module")
def start_once(site: schema.Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """The same, ending with the last test of the file."""
    with ExitStack() as stack:
        yield starter(stack, site, tmp_path_factory)
