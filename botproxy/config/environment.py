"""The configuration in environment variables: every key has one.

`BOTPROXY_TIMEOUTS__DRAIN=8s` is `timeouts: {drain: 8s}`: upper case, two underscores
between the levels, a number for an entry of a list (`BOTPROXY_CERTIFICATES__0__CHAIN`).
A value is written as in the file, so `BOTPROXY_LISTEN='[":8443"]'` is a list. Variables win
over the file, options win over variables. What Kubernetes and Docker say about a service
called botproxy begins alike and is no configuration. Pure: which variables there are is an
argument.

Before: `cli`. After: `load`, which lays them over the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from botproxy.config.units import Path

PREFIX = "BOTPROXY_"
FILE = "BOTPROXY_CONFIG"
"""Names the configuration file, and is no key of it."""
_OURS = (FILE, "BOTPROXY_INHERITED")
_STEP = re.compile(r"[A-Z0-9][A-Z0-9_.-]*")
_SERVICE = re.compile(
    r"(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)_(?:PROTO|PORT|ADDR))"
)
_SERVICE_URL = re.compile(r"(?:[A-Z0-9_]+_)?PORT(?:_[0-9]+_(?:TCP|UDP|SCTP))?")
_URL = re.compile(r"(?:tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class Variable:
    """One key that was set in the environment."""

    name: str
    path: Path
    """Where the key stands in the configuration; empty if no key can be called so."""
    text: str
    """The value as it would be written in the file."""


def variables(environment: Mapping[str, str]) -> list[Variable]:
    """Every variable that is meant to set a key, parents before children and entries of lists in order."""
    found = [
        Variable(name, _path(name.removeprefix(PREFIX)), text)
        for name, text in environment.items()
        if name.startswith(PREFIX) and name not in _OURS and not _is_service(name, text)
    ]
    return sorted(found, key=lambda each: [(isinstance(step, str), step) for step in each.path])


def file(environment: Mapping[str, str]) -> str | None:
    """The configuration file that is named there; an empty name is none."""
    return environment.get(FILE) or None


# Private


def _is_service(name: str, text: str) -> bool:
    """Whether an orchestrator says where a service called botproxy is."""
    rest = name.removeprefix(PREFIX)
    if "__" in rest:
        return False
    return bool(_SERVICE.fullmatch(rest) or (_SERVICE_URL.fullmatch(rest) and _URL.match(text)))


def _path(name: str) -> Path:
    steps = name.split("__")
    if not all(_STEP.fullmatch(step) for step in steps):
        return ()
    return tuple(int(step) if step.isdecimal() else step.lower() for step in steps)
