"""Python servers that speak TLS themselves and have the bot inside, and proxy.py as a proxy in front of it.

They come from an environment of their own, which `make bench` sets up (`ENVIRONMENT`). None
knows a reload that keeps its connections.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from bench.peers.peer import Peer, Told, first_line

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(os.environ.get("BENCH_PEERS", ROOT / ".venv-peers"))
APPLICATION = "bench.compare.peers.app:app"


_VERSION = """
import importlib.metadata, platform, ssl, sys
print(importlib.metadata.version(sys.argv[1]), f"(Python {platform.python_version()}, {ssl.OPENSSL_VERSION})")
"""


class _Python(Peer):
    package: ClassVar[str]
    command: ClassVar[str] = ""
    template = "app.py"

    @classmethod
    def is_here(cls) -> bool:
        return (ENVIRONMENT / "bin" / cls.program).exists()

    @classmethod
    def version(cls) -> str:
        python = str(ENVIRONMENT / "bin" / "python")
        return first_line(python, "-c", _VERSION, cls.package)

    def environment(self) -> Mapping[str, str]:
        return {"PYTHONPATH": str(ROOT), "BENCH_BOT": self.site.bot}

    def tell(self) -> Told:
        raise NotImplementedError("it knows no reload")

    @property
    def _program(self) -> str:
        return str(ENVIRONMENT / "bin" / self.program)


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


class ProxyPy(_Python):
    name = "proxy.py"
    program = "proxy"
    package = "proxy.py"

    @property
    def arguments(self) -> Sequence[str]:
        return (
            self._program,
            *("--hostname", "127.0.0.1", "--port", str(self.site.port)),
            *("--cert-file", str(self.site.lineage.fullchain)),
            *("--key-file", str(self.site.lineage.privkey)),
            *("--num-workers", str(self.site.workers), "--num-acceptors", str(self.site.workers)),
            *("--enable-reverse-proxy", "--plugins", "bench.compare.peers.proxy_py.BotPlugin"),
            *("--data-dir", str(self.site.directory)),
        )
