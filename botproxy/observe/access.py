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

from botproxy.model import Record, TlsInfo
from botproxy.policy.masking import masked_path

_USUAL_TARGET = 128
"""Bytes of a target that is worth remembering."""
TEXT_LIMIT = 256
"""Characters of any text but the path, which has its own limit."""


def line(record: Record, now_wall: float) -> bytes:
    """The line of a request. `now_wall`: seconds since the epoch."""
    what = _usual_what if len(record.target) <= _USUAL_TARGET else _what
    where = ""
    if record.route:
        hold = _ms(record.hold) if record.hold else "0.0"
        where = (
            f"{_where(record.route, record.upstream, record.reused)}"
            f',"hold_ms":{hold},"upstream_ms":{_ms(record.upstream_seconds)}'
        )
    tls = record.tls
    how = "" if tls is None else tls.shown or _agreed(tls)
    if tls is not None and record.first_on_connection:
        how += f',"handshake_ms":{_ms(tls.handshake)}'
    if record.error is not None or record.detail is not None or record.tunnel:
        how += _unusual(record)
    return (
        f'{{"time":"{timestamp(now_wall)}","id":{_text(record.id)}'
        f"{what(record.client, record.peer.address, record.method, record.target)}"
        f',"status":{record.status},"bytes_in":{record.bytes_in},"bytes_out":{record.bytes_out}'
        f'{where},"total_ms":{_ms(record.total)}{how}}}\n'
    ).encode()


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


def _what(client: str, peer: str, method: bytes, target: bytes) -> str:
    behind = f',"peer":{_text(peer)}' if client != peer else ""
    shown = _text(method.decode("latin-1"))
    return f',"client":{_text(client)}{behind},"method":{shown},"path":"{masked_path(target)}"'


_usual_what = lru_cache(maxsize=1024)(_what)


def _agreed(tls: TlsInfo) -> str:
    """What all lines of a connection say of it; remembered there."""
    name = f',"sni":{_text(tls.sni)}' if tls.sni is not None else ""
    resumed = "true" if tls.resumed else "false"
    tls.shown = f',"tls":{_text(tls.version)},"cipher":{_text(tls.cipher)}{name},"resumed":{resumed}'
    return tls.shown


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
