"""The access log: one JSON line for each request, and one for each refused certificate.

Everything a client can choose is masked (the path), escaped and capped; headers,
queries and bodies are never shown. Lines are formatted by hand, for they are on
the road of every request, and `json.dumps` takes more than twice as long.

Before: `proxy`, through the worker. After: `observe.writer`.
"""

from __future__ import annotations

import time
from functools import lru_cache
from json.encoder import encode_basestring_ascii

from botproxy.model import Record
from botproxy.policy.masking import masked_path

TEXT_LIMIT = 256
"""Characters of any text but the path, which has its own limit."""


def line(record: Record, now_wall: float) -> bytes:
    """The line of a request. `now_wall`: seconds since the epoch."""
    where = ""
    if record.route:
        where = (
            f"{_where(record.route, record.upstream, record.reused)}"
            f',"hold_ms":{_ms(record.hold)},"upstream_ms":{_ms(record.upstream_seconds)}'
        )
    tls = record.tls
    how = "" if tls is None else _agreed(tls.version, tls.cipher, tls.sni, tls.resumed)
    if record.first_on_connection and tls is not None:
        how += f',"handshake_ms":{_ms(tls.handshake)}'
    if record.error is not None or record.detail is not None or record.tunnel:
        how += _unusual(record)
    return (
        f'{{"time":"{timestamp(now_wall)}","id":{_text(record.id)}{_who(record.client, record.peer.address)}'
        f',"method":{_method(record.method)},"path":"{masked_path(record.target)}"'
        f',"status":{record.status},"bytes_in":{record.bytes_in},"bytes_out":{record.bytes_out}'
        f'{where},"total_ms":{_ms(record.total)}{how}}}\n'
    ).encode("ascii")


def handshake_line(client: str, sni: str | None, reason: str, seconds: float, now_wall: float) -> bytes:
    """The line of a handshake that the peer refused; `reason` is its TLS alert."""
    name = f',"sni":{_text(sni)}' if sni is not None else ""
    return (
        f'{{"time":"{timestamp(now_wall)}","client":{_text(client)}{name}'
        f',"error":"handshake","alert":{_text(reason)},"handshake_ms":{_ms(seconds)}}}\n'
    ).encode("ascii")


def lost_line(count: int) -> bytes:
    """What a LineWriter of the access log writes about lines that were lost."""
    return f'{{"time":"{timestamp(time.time())}","error":"lines_lost","count":{count}}}\n'.encode("ascii")


def timestamp(wall: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    second = int(wall)
    return f"{_second(second)}{_thousandths(int((wall - second) * 1000 + 0.001))}"


# Private


@lru_cache(maxsize=1024)
def _agreed(version: str, cipher: str, sni: str | None, resumed: bool) -> str:
    name = f',"sni":{_text(sni)}' if sni is not None else ""
    return (
        f',"tls":{_text(version)},"cipher":{_text(cipher)}{name},"resumed":{"true" if resumed else "false"}'
    )


def _unusual(record: Record) -> str:
    shown = ',"tunnel":true' if record.tunnel else ""
    if record.error is not None:
        shown += f',"error":{_text(record.error)}'
    if record.detail is not None:
        shown += f',"detail":{_text(record.detail)}'
    return shown


@lru_cache(maxsize=4)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


# What comes again and again.


@lru_cache(maxsize=1024)
def _who(client: str, peer: str) -> str:
    behind = f',"peer":{_text(peer)}' if client != peer else ""
    return f',"client":{_text(client)}{behind}'


@lru_cache(maxsize=64)
def _method(method: bytes) -> str:
    return _text(method.decode("latin-1"))


@lru_cache(maxsize=1024)
def _where(route: str, upstream: str, reused: bool) -> str:
    return f',"route":{_text(route)},"upstream":{_text(upstream)},"reused":{"true" if reused else "false"}'


@lru_cache(maxsize=1000)
def _thousandths(number: int) -> str:
    return f".{number:03d}Z"


def _ms(seconds: float) -> str:
    """Milliseconds with one decimal."""
    return _tenths(int(seconds * 1e4 + 0.5))


@lru_cache(maxsize=1024)
def _tenths(number: int) -> str:
    return f"{number // 10}.{number % 10}"


def _text(value: str) -> str:
    """`value` as a JSON string: ASCII, controls escaped, capped."""
    return encode_basestring_ascii(value if len(value) <= TEXT_LIMIT else value[:TEXT_LIMIT] + "...")
