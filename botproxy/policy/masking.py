"""What of a path may be shown: secrets in paths must not reach a log.

Bots put secrets into paths (`/bot123:ABC/`, `/api/webhooks/ID/TOKEN`,
`/services/T0/B0/xxx`). A segment is shown only when it looks like an ordinary
word, a version or a small number; everything else becomes `***`, so that a kind
of token nobody thought of is hidden too. What is shown needs no escaping
anywhere. Never decodes: an encoded secret is a secret.

Used by `policy.routes` for names of routes and by `observe.access`.
"""

from __future__ import annotations

import re

MASK = "***"
LIMIT = 512
"""Characters of a path that are shown."""
_DEPTH = 32
"""Segments looked at one by one; the rest is masked as one."""

# Short pieces of any kind, words in lower case up to 15 letters; neither numbers nor hex of 8 and more.
_ORDINARY = re.compile(r"[A-Za-z0-9._~-]{0,7}|(?![a-f]+$)[A-Za-z.][a-z._~-]{7,14}|\*")


def masked_path(target: bytes) -> str:
    """The path of `target` as it may be shown: no query, ASCII, at most `LIMIT` characters."""
    path = target.partition(b"?")[0]
    cut = len(path) > LIMIT
    if cut:  # at a segment, for half a token may look ordinary
        path = path[:LIMIT].rpartition(b"/")[0] + b"/"
    segments = path.decode("latin-1").split("/", _DEPTH)
    shown = "/".join(segment if _ORDINARY.fullmatch(segment) else MASK for segment in segments)
    return shown[:LIMIT] + ("..." if cut else "")
