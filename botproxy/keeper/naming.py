"""What each configured certificate is called, and its directory in the store.

A name must survive restarts and a reordered configuration, so it is made of the path of
the chain file: certbot's `live/bot.example.com/fullchain.pem` is `bot.example.com`,
`/etc/ssl/bot.pem` is `bot`. Where two would be the same, the first keeps it, and the
others get a piece of their path's hash. Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from botproxy.config.schema import Certificate


_USUAL = {"fullchain", "chain", "cert", "certificate", "tls", "server", "site"}
"""Stems of files that say nothing; the directory's name is the better one."""


def names_of(certificates: Sequence[Certificate]) -> tuple[str, ...]:
    """A name for each, all different."""
    given = {each.name for each in certificates}
    names: list[str] = []
    for certificate in certificates:
        name = certificate.name or _from_path(certificate.chain)
        if certificate.name is None and (name in names or name in given):
            name = f"{name}-{hashlib.sha256(certificate.chain.encode()).hexdigest()[:6]}"
        while name in names:  # one file configured twice
            name += "-again"
        names.append(name)
    return tuple(names)


def _from_path(chain: str) -> str:
    path = PurePath(chain)
    name = path.parent.name if path.stem in _USUAL and path.parent.name else path.stem
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", name).lstrip(".-")[:48]
    return name or "certificate"
