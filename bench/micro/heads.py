"""What one head costs: the strict scanner against h11, same input, interleaved.

Run `python -m bench.micro.heads`. Prints the median of paired ratios; the scanner
in `botproxy.http.head` earns its place as long as h11 costs a multiple of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from botproxy.http.head import HeadLimits, _parse_unusual_request, parse_request

HEAD = (
    b"POST /telegram HTTP/1.1\r\nHost: bot.example.com\r\nUser-Agent: Mozilla/5.0\r\nAccept: */*\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\nContent-Type: application/json\r\nContent-Length: 2048\r\n"
    b"Connection: keep-alive\r\nX-Telegram-Bot-Api-Secret-Token: abcdefg\r\nAccept-Language: en\r\n\r\n"
)
LIMITS = HeadLimits(16 * 1024, 100, 8 * 1024)
ROUNDS, CALLS = 15, 2000


def seconds(parse: Callable[[bytes, HeadLimits], object]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    for _ in range(CALLS):
        parse(HEAD, LIMITS)
    return (time.process_time() - started) / CALLS


def main() -> None:
    pairs = [(seconds(parse_request), seconds(_parse_unusual_request)) for _ in range(ROUNDS)]
    ratio = statistics.median(h11 / scanner for scanner, h11 in pairs)
    spread = sorted(h11 / scanner for scanner, h11 in pairs)
    print(
        f"h11 with the strict layer costs {ratio:.1f} times the scanner ({spread[0]:.1f} to {spread[-1]:.1f})"
    )


if __name__ == "__main__":
    main()
