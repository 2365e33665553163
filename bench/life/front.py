"""One botproxy over all its successors: what it is told, who belongs to it, what it holds."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests import certs
from tests.harness import Proxied, descriptors_of, free_port, rss_of

PATIENCE = 30.0


class Front:
    """`supervisor` is the process id of the one that serves now."""

    def __init__(self, directory: Path, bot_url: str) -> None:
        authority = certs.root().intermediate()
        pair = authority.issue("localhost").write(directory)
        self.trust = authority.trust()
        self.proxied = Proxied(
            {
                "listen": [f"127.0.0.1:{free_port()}"],
                "plain_listen": [],
                "workers": 2,
                "state_dir": str(directory / "state"),
                "certificates": [{"chain": pair.chain, "key": pair.key}],
                "upstreams": {"bot": {"url": bot_url}},
                "log": {"access": "off"},
            },
            directory,
        ).wait_ready()
        self.supervisor = self.proxied.process.pid
        self._changes = 0

    @property
    def port(self) -> int:
        return self.proxied.port

    def reload(self) -> None:
        """SIGHUP with another configuration; until it is in use."""
        self._changes += 1
        config = self.proxied.config | {"headers": {"set": {"X-Change": str(self._changes)}}}
        (self.proxied.directory / "botproxy.yaml").write_text(yaml.safe_dump(config))
        mark = len(self.proxied.log.lines)
        os.kill(self.supervisor, signal.SIGHUP)
        self.proxied.log.wait_for(lambda line: "the new configuration is in use" in line, mark)

    def upgrade(self) -> None:
        """SIGUSR2; until the successor serves."""
        mark = len(self.proxied.log.lines)
        os.kill(self.supervisor, signal.SIGUSR2)
        line = self.proxied.log.wait_for(lambda line: "the successor serves" in line, mark)
        found = re.search(r" pid=(\d+)", line)
        assert found is not None
        self.supervisor = int(found[1])

    def children(self) -> dict[int, str]:
        """Those of the supervisor, by process id."""
        tasks = Path(f"/proc/{self.supervisor}/task/{self.supervisor}/children").read_text().split()
        found = {}
        for pid in tasks:
            try:
                found[int(pid)] = Path(f"/proc/{pid}/comm").read_text().strip()
            except OSError:
                continue  # it ended while we looked
        return found

    def workers(self) -> list[int]:
        return [pid for pid, name in self.children().items() if name == "botproxy-worker"]

    def settle(self) -> None:
        """Until nobody drains any more."""
        deadline = time.monotonic() + PATIENCE
        while len(self.children()) > 3:
            assert time.monotonic() < deadline, self.children()
            time.sleep(0.05)

    def holds(self) -> tuple[int, int]:
        """Resident bytes and descriptors of all processes."""
        pids = [self.supervisor, *self.children()]
        return sum(map(rss_of, pids)), sum(map(descriptors_of, pids))

    def stop(self) -> None:
        if self.supervisor != self.proxied.process.pid:
            os.kill(self.supervisor, signal.SIGTERM)
        self.proxied.stop()


@contextmanager
def running(directory: Path, bot_url: str) -> Iterator[Front]:
    directory.chmod(0o755)
    front = Front(directory, bot_url)
    try:
        yield front
    finally:
        front.stop()
