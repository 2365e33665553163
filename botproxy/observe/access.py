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

TEXT_LIMIT = 256
"""Characters of any text but the path, which has its own limit."""


def line(record: Record, now_wall: float) -> bytes:
    """The line of a request. `now_wall`: seconds since the epoch."""
    client = record.client
    peer = record.peer.address
    parts = [f'{{"time":"{timestamp(now_wall)}","id":{_text(record.id)},"client":{_name(client)}']
    if client != peer:
        parts.append(f',"peer":{_name(peer)}')
    parts.append(
        f',"method":{_name(record.method.decode("latin-1"))},"path":"{masked_path(record.target)}"'
        f',"status":{record.status},"bytes_in":{record.bytes_in},"bytes_out":{record.bytes_out}'
    )
    if record.route:
        parts.append(
            f',"route":{_name(record.route)},"upstream":{_name(record.upstream)}'
            f',"reused":{"true" if record.reused else "false"}'
            f',"hold_ms":{record.hold * 1e3:.1f},"upstream_ms":{record.upstream_seconds * 1e3:.1f}'
        )
    parts.append(f',"total_ms":{record.total * 1e3:.1f}')
    if record.tls is not None:
        parts.append(_tls(record.tls, record.first_on_connection))
    if record.error is not None or record.detail is not None or record.tunnel or record.notes:
        parts.append(_unusual(record))
    parts.append("}\n")
    return "".join(parts).encode("ascii")


def handshake_line(client: str, sni: str | None, reason: str, seconds: float, now_wall: float) -> bytes:
    """The line of a handshake that the peer refused; `reason` is its TLS alert."""
    name = f',"sni":{_text(sni)}' if sni is not None else ""
    return (
        f'{{"time":"{timestamp(now_wall)}","client":{_text(client)}{name}'
        f',"error":"handshake","alert":{_text(reason)},"handshake_ms":{seconds * 1e3:.1f}}}\n'
    ).encode("ascii")


def lost_line(count: int) -> bytes:
    """What a LineWriter of the access log writes about lines that were lost."""
    return f'{{"time":"{timestamp(time.time())}","error":"lines_lost","count":{count}}}\n'.encode("ascii")


def timestamp(wall: float) -> str:
    """RFC 3339, UTC, milliseconds."""
    milliseconds = int(wall * 1000)
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


# Private


def _tls(info: TlsInfo, is_first: bool) -> str:
    agreed = _agreed(info.version, info.cipher, info.sni, info.resumed)
    return f'{agreed},"handshake_ms":{info.handshake * 1e3:.1f}' if is_first else agreed


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
    if record.notes:
        shown += f',"notes":[{",".join(map(_text, record.notes))}]'
    return shown


@lru_cache(maxsize=4)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


@lru_cache(maxsize=1024)
def _name(value: str) -> str:
    """`_text` of what comes again and again."""
    return _text(value)


def _text(value: str) -> str:
    """`value` as a JSON string: ASCII, controls escaped, capped."""
    return encode_basestring_ascii(value if len(value) <= TEXT_LIMIT else value[:TEXT_LIMIT] + "...")
