"""When a client has had enough: rate limits and uploads that drip.

Pure arithmetic: times and counts in, verdicts out. Rate limits are token buckets
in the form of GCRA: one number, the "theoretical arrival time", holds the whole
state of a bucket, and 0 is a full bucket.

Where the numbers are kept is `server.census`'s business, in memory that all
workers share; who is answered 429 is `proxy`'s.
"""

from __future__ import annotations

from ipaddress import IPv6Address

_SLACK = 1e-6
"""Seconds; sums of floats must not cost the last request of a burst."""


def admit(tat: float, now: float, rate: float, burst: int) -> tuple[float, float | None]:
    """Spend one token of a bucket that gains `rate` per second and holds `burst`.

    `tat` is the bucket's state, `now` monotonic seconds. Returns the new state, and None or the
    seconds until a token is there; a refused request spends nothing.
    """
    spent = (tat if tat > now else now) + 1.0 / rate
    wait = spent - burst / rate - now
    if wait > _SLACK:
        return tat, wait
    return spent, None


def address_key(address: str) -> bytes:
    """What counts as one client: an IPv4 address, an IPv6 /64.

    One customer owns a whole /64, so counting single IPv6 addresses would limit nobody.
    """
    if ":" not in address:
        return address.encode("ascii")
    parsed = IPv6Address(address.partition("%")[0])
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped).encode("ascii")
    return parsed.packed[:8]


def too_slow(received: int, waited: float, rate: float) -> bool:
    """Whether `received` bytes in `waited` seconds are below `rate` bytes per second (0: no rate)."""
    return received < rate * waited
