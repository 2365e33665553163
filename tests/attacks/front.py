"""botproxy between attackers and bots: one for the clean client, another to be attacked or to attack."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import certs
from tests.attacks.bot import RunningBot, running_bot
from tests.attacks.clean import TARGET
from tests.harness import Proxied, free_port, running


@dataclass(frozen=True)
class Front:
    proxied: Proxied
    bot: RunningBot
    """The one behind everything but the clean client's path."""
    ca: Path


@contextmanager
def front(timeouts: Mapping[str, str], settings: Mapping[str, Any], workers: int = 1) -> Iterator[Front]:
    """A fresh one; `settings` replace sections of the configuration."""
    authority = certs.root().intermediate()
    with tempfile.TemporaryDirectory(prefix="attacks-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # the workers have given up root, and must reach the bots
        pair = authority.issue("localhost").write(directory / "site")
        ca = directory / "ca.pem"
        assert authority.root is not None
        ca.write_bytes(certs.pem(authority.root))
        with (
            running_bot(directory / "clean.sock") as clean,
            running_bot(directory / "target.sock") as target,
        ):
            config: dict[str, Any] = {
                "listen": [f"127.0.0.1:{free_port()}"],
                "plain_listen": [],
                "workers": workers,
                "state_dir": f"{name}/state",
                "admin": "off",
                "certificates": [{"chain": pair.chain, "key": pair.key}],
                "upstreams": {"clean": {"url": clean.url}, "target": {"url": target.url}},
                "routes": [
                    {"path": TARGET, "upstream": "clean"},
                    {"path": "/", "upstream": "target"},
                ],
                # As many as are sent: what they cost together shall be seen.
                "limits": {"connections_per_address": 1000, **settings.get("limits", {})},
                "timeouts": {"drain": "1s", **timeouts},
                **{key: value for key, value in settings.items() if key != "limits"},
            }
            if os.geteuid() == 0:
                config["user"] = "nobody"
            with running(config, directory) as proxied:
                yield Front(proxied, target, ca)
