"""The Date of responses that have none of their own (RFC 9110 6.6.1)."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache


def http_date() -> bytes:
    """Now, as a Date field says it; written once a second."""
    return _written(int(time.time()))


@lru_cache(maxsize=1)
def _written(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode("ascii")
