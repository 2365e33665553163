"""What each configured certificate is called, and its directory in the store.

A name must survive restarts and a reordered configuration, so it is made of the path of
the chain file: certbot's `live/bot.example.com/fullchain.pem` is `bot.example.com`,
`/etc/ssl/bot.pem` is `bot`. Where two would be the same, a piece of the path's hash
tells them apart. Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from botproxy.config.schema import Certificate

_USUAL = {"fullchain", "chain", "cert", "certificate", "tls", "server", "site"}
"""Stems of files that say nothing; the directory's name is the better one."""


def names_of(certificates: Sequence[Certificate]) -> tuple[str, ...]:
    """A name for each, all different."""
    plain = [each.name or _from_path(each.chain) for each in certificates]
    often = Counter(plain)
    names: list[str] = []
    for certificate, name in zip(certificates, plain, strict=True):
        if often[name] > 1 and certificate.name is None:
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
