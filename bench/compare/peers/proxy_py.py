"""proxy.py's reverse proxy, told where the bot is: the plugin that its documentation asks for.

Imported by proxy.py in the peers' own environment, not by anything here.
"""

from __future__ import annotations

import os
from typing import Any

from proxy.http import Url  # type: ignore[import-not-found]
from proxy.http.server import ReverseProxyBasePlugin  # type: ignore[import-not-found]


class BotPlugin(ReverseProxyBasePlugin):  # type: ignore[misc]
    """Every path to the bot, as it is."""

    def routes(self) -> list[str]:
        return [r"/(.*)$"]

    def handle_route(self, request: Any, pattern: Any) -> Any:
        return Url.from_bytes(f"http://{os.environ['BENCH_BOT']}".encode("ascii") + request.path)
