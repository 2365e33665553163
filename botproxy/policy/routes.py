"""Which route serves a request: the first one, in configured order, that fits host and path.

Paths are compared as the bytes that will be forwarded. A bot may read the same
bytes as another path (decoding, dot segments, `//`, `;`, backslash); where that
could lead to another route, the request is refused rather than let past a rule.
Everything that depends on the configuration is worked out once.

Before: `http.h1`. After: `policy.limits`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from botproxy.errors import BadRequest, Misdirected, NotFound
from botproxy.policy.masking import masked_path

if TYPE_CHECKING:
    from botproxy.config.schema import Config, RateLimit, Route

_MARKS = re.compile(rb"[%\\;]|//|/\.")
"""A path without these is read alike by everybody."""
_PARAMETERS = re.compile(rb";[^/]*")
_DECODINGS = 2
"""How often what stands behind us may decode: a bot, and a decoder before it."""
_TREACHEROUS = re.compile(rb"\x00|/[^/;]*;[^/]*[%\\]|[/\\]\.\.(?:[/\\;]|$)")
"""NUL, a separator within parameters, and dot-dot segments, whose readings depend on the order of steps."""


@dataclass(frozen=True, slots=True)
class CompiledRoute:
    """One route, ready for use."""

    index: int
    """Its place in the configuration."""
    name: str
    """For logs: first host and path, masked where it may hold a secret."""
    upstream: str
    rate: RateLimit


class RouteTable:
    """All routes of a configuration."""

    def __init__(self, config: Config) -> None:
        routes = [
            (route, _Candidate(_compile(index, route, config), route.path))
            for index, route in enumerate(config.routes)
        ]
        self.names_hosts = any(route.hosts for route in config.routes)
        """Whether any route names its hosts; otherwise every host is served."""
        self._anywhere = _Site([each for route, each in routes if not route.hosts])
        self._exact: dict[str, _Site] = {}
        self._below: dict[str, _Site] = {}
        for host in {host for route in config.routes for host in route.hosts}:
            fitting = [each for route, each in routes if _fits(host, route.hosts)]
            if host.startswith("*."):
                self._below[host[2:]] = _Site(fitting)
            else:
                self._exact[host] = _Site(fitting)
        self._only = self._anywhere.sole if len(routes) == 1 else None

    def match(self, host: str, target: bytes) -> CompiledRoute:
        """The route of a request. `host`: lower case, no port; `target`: path and query as received.

        Raises Misdirected for a host that no route serves, NotFound for a path that none does, and
        BadRequest for a path that two readers could take to different routes.
        """
        if self._only is not None:
            return self._only
        return self._site(host).match(target)

    def serves(self, host: str) -> bool:
        """Whether some route serves `host`."""
        return not self._site(host).is_empty

    def _site(self, host: str) -> _Site:
        site = self._exact.get(host)
        if site is None:
            site = self._below.get(host.partition(".")[2], self._anywhere)
        return site


class _Candidate:
    """A route and the paths it serves."""

    __slots__ = ("_below", "_canonical", "_prefix", "route", "serves_all")

    def __init__(self, route: CompiledRoute, path: str) -> None:
        self.route = route
        self.serves_all = path == "/"
        self._prefix = path.encode("ascii")
        self._below = _below(self._prefix)
        canonical = _canonical(self._prefix)
        self._canonical = (canonical, _below(canonical))

    def serves(self, path: bytes) -> bool:
        return self.serves_all or path == self._prefix or path.startswith(self._below)

    def serves_canonical(self, path: bytes) -> bool:
        prefix, below = self._canonical
        return self.serves_all or path == prefix or path.startswith(below)


class _Site:
    """What is served under one host name."""

    def __init__(self, candidates: Sequence[_Candidate]) -> None:
        self._candidates = candidates
        self.is_empty = not candidates
        self.sole = candidates[0].route if candidates and candidates[0].serves_all else None
        """The route of every path, if there is such a one."""

    def match(self, target: bytes) -> CompiledRoute:
        if self.sole is not None:
            return self.sole
        if self.is_empty:
            raise Misdirected
        path = target.partition(b"?")[0]
        found = None
        for candidate in self._candidates:
            if candidate.serves(path):
                found = candidate.route
                break
        if _MARKS.search(path) and not self._is_read_alike(path, found):
            raise BadRequest("a path that can be read in two ways, and routes depend on it")
        if found is None:
            raise NotFound
        return found

    def _is_read_alike(self, path: bytes, found: CompiledRoute | None) -> bool:
        readings = [path]
        for _ in range(_DECODINGS):
            readings.append(unquote_to_bytes(readings[-1]))
        if any(_TREACHEROUS.search(reading) for reading in readings):
            return False
        plain = _canonical(readings[-1])
        return found is next((each.route for each in self._candidates if each.serves_canonical(plain)), None)


def _compile(index: int, route: Route, config: Config) -> CompiledRoute:
    more = f"+{len(route.hosts) - 1}" if len(route.hosts) > 1 else ""
    host = route.hosts[0] if route.hosts else ""
    name = f"{host}{more}{masked_path(route.path.encode('ascii'))}"
    return CompiledRoute(index, name, route.upstream or next(iter(config.upstreams)), route.rate)


def _fits(host: str, hosts: Sequence[str]) -> bool:
    """Whether a route for `hosts` serves `host`, which may itself be a wildcard of the configuration."""
    return not hosts or host in hosts or f"*.{host.partition('.')[2]}" in hosts


def _below(prefix: bytes) -> bytes:
    return prefix if prefix.endswith(b"/") else prefix + b"/"


def _canonical(path: bytes) -> bytes:
    """A decoded path as the most obliging reader takes it: any separator, no parameters, no gaps."""
    segments = _PARAMETERS.sub(b"", path.replace(b"\\", b"/")).split(b"/")
    named = [segment for segment in segments if segment not in (b"", b".")]
    ends_open = segments[-1] in (b"", b".")
    return b"/" + b"/".join(named) + (b"/" if ends_open and named else b"")
