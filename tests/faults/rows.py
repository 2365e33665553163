"""The fault table: what each row is about, what others do, and what is promised here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    number: int
    fault: str
    nginx: str
    haproxy: str
    envoy: str
    promise: str
    allowed: str = "0"
    """Which requests of the checker may fail, in words."""


ROWS = (
    Row(
        1,
        "the bot refuses connections",
        "502 at once",
        "3 tries, then 503",
        "503",
        "waits `upstreams.*.hold` (10 s), because nothing was sent yet, then 503 with `Retry-After`; the "
        "first request after the bot is back is served, exactly once",
    ),
    Row(
        2,
        "nobody answers the SYN",
        "504 after 60 s",
        "a timeout to be set",
        "503 after 5 s",
        "504 after `timeouts.connect` (3 s), not tried again",
    ),
    Row(
        3,
        "a kept connection is found dead before a byte of the answer",
        "next server for safe methods",
        "retry by option",
        "by retry policy",
        "one more try on a new connection for `GET`, `HEAD` and `OPTIONS`; nothing else is sent twice: 502",
    ),
    Row(
        4,
        "FIN or RST inside the response head",
        "502",
        "502",
        "503",
        "502, the connection to the bot is not used again",
    ),
    Row(
        5,
        "FIN or RST inside the response body",
        "closes early",
        "closes, flag SD",
        "resets",
        "the client's connection is cut, so that nothing short looks complete; `upstream_aborted` in the log",
    ),
    Row(
        6,
        "the client ends its side after the request",
        "serves; 499 when all is closed",
        "aborts since 3.3",
        "aborts",
        "reset or end without close_notify: the request to the bot ends within 1 s; close_notify: goes on "
        "while bytes move, ends after half a second of silence",
    ),
    Row(
        7,
        "the bot answers and ends its side before the upload is over",
        "closes",
        "closes",
        "closes",
        "the answer reaches the client, the upload is not sent on, both connections end",
    ),
    Row(
        8,
        "the bot drips, or stands still",
        "60 s between reads",
        "a timeout to be set",
        "15 s altogether",
        "`timeouts.response` to the head (504), `timeouts.idle` between two pieces (cut), 60 s each; "
        "dripping is no fault",
    ),
    Row(
        9,
        "the bot hangs and the client leaves",
        "499, closes",
        "aborts",
        "resets",
        "the connection to the bot ends within 1 s, and no descriptor is left",
    ),
    Row(
        10,
        "clients do not read",
        "cut after 60 s",
        "a timeout to be set",
        "idle timeout",
        "the bot is slowed down, memory stays (8 MiB for ten), cut after `timeouts.write` (30 s)",
    ),
    Row(
        11,
        "writes in part, small buffers",
        "byte-exact",
        "byte-exact",
        "byte-exact",
        "100 MB each way byte-exact; both ends take and give 1 kB at once, with small kernel buffers",
    ),
    Row(
        12,
        "SIGKILL of a worker under load",
        "started again",
        "the master ends too, by default",
        "-",
        "another one after 0.1 s; what was queued is served by it; the other worker is not touched",
        "one for each connection of that moment",
    ),
    Row(
        13,
        "a worker hangs",
        "not noticed",
        "watchdog aborts",
        "watchdog kills",
        "ended after 10 s, the log says where it hung; what was queued for it is served by the next one",
        "one for each connection of that moment",
    ),
    Row(
        14,
        "a worker dies again and again",
        "started again for ever",
        "ends",
        "-",
        "started later each time (up to 30 s); the supervisor stays, health says that a worker is missing",
        "one for each connection of these moments",
    ),
    Row(
        15,
        "SIGKILL of the supervisor",
        "workers go on as orphans",
        "workers end",
        "-",
        "workers answer what they have and end; a new start gets the ports",
        "those that begin before the new start serves",
    ),
    Row(
        16,
        "SIGTERM under load",
        "fast stop",
        "hard stop",
        "drains",
        "all that was on the wire before is answered; a second SIGTERM cuts",
        "those that begin after the signal",
    ),
    Row(
        17,
        "50 reloads under load, and a wrong one",
        "takes over or rolls back",
        "small loss, documented",
        "hot restart",
        "nobody notices; a WebSocket outlives the reload; a wrong configuration changes nothing",
    ),
    Row(
        18,
        "a storm of reloads",
        "old workers pile up",
        "a limit to be set",
        "-",
        "signals within 0.2 s are one; at most two earlier generations drain",
    ),
    Row(
        25,
        "logs: disk full, reader gone, reader stalled",
        "goes on",
        "drops lines",
        "drops lines",
        "lines are lost and counted, requests are not touched",
    ),
    Row(
        26,
        "file descriptors run out for a moment",
        "pauses for 0.5 s",
        "computed at the start",
        "refuses",
        "`limits.connections` is lowered so that it does not happen; if it does, idle connections close, new "
        "ones wait in the queue, accepting goes on after 0.2 s; a shortage that lasts costs requests (503)",
    ),
    Row(
        27,
        "a worker needs more memory than it may",
        "killed by the kernel",
        "refuses",
        "sheds load",
        "above `limits.memory` idle connections close, new ones wait, another worker takes over; what was "
        "begun is finished",
    ),
    Row(
        28,
        "the clock jumps by a day",
        "no effect on timers",
        "no effect on timers",
        "no effect on timers",
        "no timer minds; the Date field follows",
    ),
    Row(
        29,
        "the bot moves: another loopback, another address of its name",
        "looked up once",
        "with resolvers",
        "looked up by time",
        "`localhost` is both loopbacks; a failed connect looks the name up again",
    ),
    Row(
        30,
        "the bot restarts on its port",
        "as row 3",
        "as row 3",
        "as row 3",
        "kept connections found dead cost nothing; the others wait for it",
        "those that the old bot had",
    ),
    Row(
        31,
        "something else listens there: SSH, TLS, SMTP",
        "502",
        "502",
        "503",
        "502, with the code `bad_upstream_response` or `upstream_closed` in the access log",
    ),
    Row(
        32,
        "an error of ours, at seven places",
        "-",
        "-",
        "-",
        "costs the connection it met, with a traceback in the log; the worker lives",
        "1 for each place",
    ),
    Row(
        33,
        "a worker stands still for 0.8 s",
        "-",
        "-",
        "-",
        "nothing that came in time is timed out; how late it was can be asked",
    ),
    Row(
        34,
        "the network to a client is lost, without a FIN",
        "keepalive off",
        "by option",
        "by option",
        "its slot is freed after `timeouts.write`, also when small pieces go to it",
    ),
    Row(
        35,
        "after a reboot the bot comes later",
        "502 until then",
        "503 until then",
        "503 until then",
        "ready without the bot; requests wait for `upstreams.*.hold`, then 503 with `Retry-After`",
    ),
)
"""All rows but those of certificates."""
