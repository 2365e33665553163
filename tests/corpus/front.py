"""A botproxy of its own for the corpus, with deadlines so short that every connection ends by itself."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import certs
from tests.harness import Proxied, free_port, running

TIMEOUTS = {
    "keep_alive": "1s",
    "head": "5s",  # 16 KiB in single bytes must fit
    "body": "2s",
    "response": "2s",
    "idle": "2s",
    "upstream_keep_alive": "3s",
    "drain": "1s",
}


@dataclass
class Front:
    proxied: Proxied
    trust: ssl.SSLContext

    @property
    def port(self) -> int:
        return self.proxied.port


@contextmanager
def front(bot_port: int, **sections: Any) -> Iterator[Front]:
    """botproxy in front of the bot on `bot_port`."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        ca = certs.root().intermediate()
        site = ca.issue("localhost", "bot.example").write(directory)
        config: dict[str, Any] = {
            "listen": [f"127.0.0.1:{free_port()}"],
            "plain_listen": [],
            "workers": 1,
            "state_dir": name,
            "admin": "off",
            "certificates": [{"chain": site.chain, "key": site.key}],
            "upstreams": {"bot": {"url": f"http://127.0.0.1:{bot_port}"}},
            "timeouts": TIMEOUTS,
            **sections,
        }
        with running(config, directory) as proxied:
            yield Front(proxied, ca.trust())
