"""What one access log line costs: formatted by hand against `json.dumps`, same record, interleaved.

Run `python -m bench.micro.access`. Prints both and the median of paired ratios;
the formatting in `botproxy.observe.access` earns its place as long as the ratio is
well above 1. Also prints what handing a line to the writer costs its caller.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

from botproxy.model import Peer, Record, TlsInfo
from botproxy.observe import access
from botproxy.observe.writer import LineWriter
from botproxy.policy.masking import masked_path

ROUNDS, CALLS = 15, 5000
WALL = 1_795_464_000.123
TLS = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", "bot.example.com", False, 0.004, True)
RECORD = Record("0f5c1d9a4be2", Peer("149.154.167.197", 50000, 443), "149.154.167.197", 0.0, TLS, False)
RECORD.method, RECORD.target = b"POST", b"/bot123456:AAEhBOweik6ad9r_QXMENQjcrGbqCr4K-bc/update"
RECORD.status, RECORD.bytes_in, RECORD.bytes_out = 200, 2048, 17
RECORD.route, RECORD.upstream, RECORD.reused = "/", "bot", True
RECORD.upstream_seconds, RECORD.total = 0.0031, 0.0034


def dumped(record: Record, wall: float) -> bytes:
    """The same line by the library."""
    time_shown = datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds")
    tls = record.tls or TLS
    shown = {
        "time": time_shown,
        "id": record.id,
        "client": record.client,
        "method": record.method.decode("latin-1"),
        "path": masked_path(record.target),
        "status": record.status,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "route": record.route,
        "upstream": record.upstream,
        "reused": record.reused,
        "hold_ms": round(record.hold * 1e3, 1),
        "upstream_ms": round(record.upstream_seconds * 1e3, 1),
        "total_ms": round(record.total * 1e3, 1),
        "tls": tls.version,
        "cipher": tls.cipher,
        "sni": tls.sni,
        "resumed": tls.resumed,
    }
    return json.dumps(shown, separators=(",", ":")).encode("ascii") + b"\n"


def seconds(call: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - started) / CALLS


def main() -> None:
    pairs = [
        (seconds(lambda: access.line(RECORD, WALL)), seconds(lambda: dumped(RECORD, WALL)))
        for _ in range(ROUNDS)
    ]
    ours, library = (statistics.median(column) * 1e6 for column in zip(*pairs, strict=True))
    ratios = sorted(theirs / mine for mine, theirs in pairs)
    print(
        f"a line takes {ours:.2f} us, json.dumps {library:.2f} us: "
        f"{statistics.median(ratios):.1f} times as long ({ratios[0]:.1f} to {ratios[-1]:.1f})"
    )
    line = access.line(RECORD, WALL)
    null = os.open(os.devnull, os.O_WRONLY)
    writer = LineWriter(null, max_pending_bytes=len(line) * CALLS * 2)
    handing = []
    for _ in range(ROUNDS):
        handing.append(seconds(lambda: writer.write(line)) * 1e6)
        writer.flush(1.0)
    writer.close(1.0)
    os.close(null)
    print(f"handing it to the writer takes {statistics.median(handing):.2f} us")


if __name__ == "__main__":
    main()
