"""Python servers that speak TLS themselves and have the bot inside, and mitmproxy, which is a proxy.

They come from environments of their own, which `make bench` sets up (`ENVIRONMENTS`). None
knows a reload that keeps its connections.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from bench.peers.peer import Peer, Told, first_line

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = Path(os.environ.get("BENCH_PEERS", ROOT / ".venv-peers"))
APPLICATION = "bench.compare.peers.app:app"


_VERSION = """
import importlib.metadata, platform, sys
{}
print(importlib.metadata.version(sys.argv[1]), f"(Python {{platform.python_version()}}, {{tls}})")
"""


class _Python(Peer):
    package: ClassVar[str]
    environment_name: ClassVar[str] = "servers"
    command: ClassVar[str] = ""
    tls: ClassVar[str] = "import ssl; tls = ssl.OPENSSL_VERSION"
    """Finds out what its handshakes are made by."""
    template = "app.py"

    @classmethod
    def is_here(cls) -> bool:
        return cls._found(cls.program).exists()

    @classmethod
    def version(cls) -> str:
        return first_line(str(cls._found("python")), "-c", _VERSION.format(cls.tls), cls.package)

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(ROOT), "BENCH_BOT": self.site.bot}

    def tell(self) -> Told:
        raise NotImplementedError("it knows no reload")

    @property
    def _program(self) -> str:
        return str(self._found(self.program))

    @classmethod
    def _found(cls, program: str) -> Path:
        return ENVIRONMENTS / cls.environment_name / "bin" / program


class Hypercorn(_Python):
    name = "hypercorn"
    program = package = "hypercorn"

    @property
    def arguments(self) -> Sequence[str]:
        return (
            self._program,
            *("--bind", f"127.0.0.1:{self.site.port}"),
            *("--certfile", str(self.site.lineage.fullchain)),
            *("--keyfile", str(self.site.lineage.privkey)),
            *("--workers", str(self.site.workers)),
            *("--worker-class", "uvloop"),
            *("--keep-alive", "75"),
            APPLICATION,
        )


class Uvicorn(_Python):
    name = "uvicorn"
    program = package = "uvicorn"

    @property
    def arguments(self) -> Sequence[str]:
        return (
            self._program,
            *("--host", "127.0.0.1", "--port", str(self.site.port)),
            *("--ssl-certfile", str(self.site.lineage.fullchain)),
            *("--ssl-keyfile", str(self.site.lineage.privkey)),
            *("--workers", str(self.site.workers)),
            *("--timeout-keep-alive", "75"),
            APPLICATION,
        )


class Granian(_Python):
    name = "granian"
    program = package = "granian"
    tls = "tls = 'rustls'"

    @property
    def arguments(self) -> Sequence[str]:
        return (
            self._program,
            *("--interface", "asgi"),
            *("--host", "127.0.0.1", "--port", str(self.site.port)),
            *("--ssl-certificate", str(self.site.lineage.fullchain)),
            *("--ssl-keyfile", str(self.site.lineage.privkey)),
            *("--ssl-protocol-min", "tls1.2"),
            *("--workers", str(self.site.workers)),
            APPLICATION,
        )


class MitmProxy(_Python):
    name = "mitmproxy"
    program = "mitmdump"
    package = "mitmproxy"
    environment_name = "mitmproxy"
    tls = "import OpenSSL.SSL; tls = OpenSSL.SSL.SSLeay_version(0).decode()"

    def configure(self) -> None:
        """It wants all in one file."""
        lineage = self.site.lineage
        self._pem.touch(mode=0o600)
        self._pem.write_bytes(lineage.privkey.read_bytes() + lineage.fullchain.read_bytes())
        super().configure()

    @property
    def arguments(self) -> Sequence[str]:
        return (
            self._program,
            *("--mode", f"reverse:http://{self.site.bot}"),
            *("--listen-host", "127.0.0.1", "--listen-port", str(self.site.port)),
            *("--certs", f"*={self._pem}"),
            *("--set", f"confdir={self.site.directory}"),
            *("--set", "stream_large_bodies=1m"),
        )

    @property
    def _pem(self) -> Path:
        return self.site.directory / "site.pem"
