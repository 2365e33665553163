"""`botproxy bench handshake` of servers that close, hang, refuse or never end; and interrupted."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from botproxy.cli import handshakes
from botproxy.cli.handshakes import Limits, Tally, measure
from botproxy.cli.target import target
from tests import certs
from tests.cli.command import PATIENCE, Ended, botproxy, environment, serving
from tests.cli.tls_server import (
    LOOK,
    closes,
    context,
    greets,
    hangs,
    never_ends,
    resets,
    server,
    shakes,
    turning,
)
from tests.harness import Behaviour, free_port
from tests.wire import Wire

BENCH = ("bench", "handshake")
CLOSED = "the server closed the connection"
NEEDS_ONE = "the server refuses the connection: certificate required"
NOT_ENDED = "the server did not end the connection"
SILENT = "no answer within 5 s"


@pytest.fixture
def made(tmp_path) -> ssl.SSLContext:
    return context(tmp_path, certs.root().issue("localhost"))


@pytest.fixture
def with_tickets(tmp_path) -> ssl.SSLContext:
    return context(tmp_path, certs.root().issue("localhost"), tickets=1)


@pytest.fixture
def strict(tmp_path) -> ssl.SSLContext:
    """Wants a certificate of every client."""
    authority = certs.root()
    made = context(tmp_path, authority.issue("localhost"))
    made.load_verify_locations(cadata=certs.pem(authority.certificate).decode())
    made.verify_mode = ssl.CERT_REQUIRED
    return made


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What was started in the background ignores Ctrl-C, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def tally_of(port: int, limits: Limits) -> Tally:
    """Of full handshakes in TLS 1.3."""
    where = target(f"https://127.0.0.1:{port}", None)
    return measure(where, "TLSv1.3", "full", limits, lambda share: None)


# Servers


@pytest.mark.parametrize(("bad", "why"), [(closes, CLOSED), (hangs, SILENT)])
def test_a_server_that_has_had_enough_before_a_session_is_counted(with_tickets, bad: Behaviour, why):
    with turning(shakes(with_tickets), bad, after=LOOK + 5) as bot:
        ended = botproxy(*BENCH, "--json", "--count", "5", "--clients", "1", f"https://localhost:{bot.port}")
    answer = json.loads(ended.out)
    full, resumed = answer["measures"]
    assert (full["handshakes"], full["errors"]) == (5, {})
    assert (resumed["handshakes"], resumed["errors"]) == (0, {why: 1})
    assert not answer["ok"]
    assert (ended.code, ended.err) == (1, f"botproxy: error: TLSv1.3 resumed: 1 failed: {why}\n")


def test_a_server_that_gives_no_more_sessions_is_counted_once(with_tickets, made):
    with turning(shakes(with_tickets), shakes(made), after=LOOK + 5) as bot:
        ended = botproxy(*BENCH, "--json", "--count", "5", "--clients", "1", f"https://localhost:{bot.port}")
    _, resumed = json.loads(ended.out)["measures"]
    assert (ended.code, resumed["errors"]) == (1, {"no session to resume": 1})


def test_a_server_that_resets_every_connection_is_counted():
    with turning(resets, resets, after=0) as bot:
        tally = tally_of(bot.port, Limits(30.0, 5000, 4))
    assert tally.latencies == []
    assert list(tally.errors) == ["connection reset by peer"]
    assert tally.errors.total() >= handshakes.ERRORS_ENOUGH


def test_a_server_that_wants_a_certificate_refuses(strict):
    with server(strict) as url:
        ended = botproxy(*BENCH, url)
    assert (ended.code, ended.out) == (1, "")
    assert f"no handshake in TLSv1.3: {NEEDS_ONE}\n" in ended.err


def test_a_server_that_begins_to_want_a_certificate_is_counted(made, strict):
    with turning(shakes(made), shakes(strict), after=LOOK) as bot:
        ended = botproxy(*BENCH, "--json", "--count", "40", f"https://localhost:{bot.port}")
    full, _ = json.loads(ended.out)["measures"]
    assert (ended.code, full["handshakes"], full["errors"]) == (1, 0, {NEEDS_ONE: 40})


def test_a_refusal_behind_the_handshake_is_seen_however_late_the_client_looks(strict):
    """The rest of the client's flight meets a closed socket: a reset arrives behind the alert."""
    with turning(shakes(strict), shakes(strict), after=0) as bot:
        tally = tally_of(bot.port, Limits(30.0, 400, 16))
    assert tally.latencies == []
    assert list(tally.errors) == [NEEDS_ONE]


def test_a_server_that_never_ends_a_connection_does_not_hold_up_the_run(tmp_path):
    """Nor does its certificate become a matter of doubt."""
    authority = certs.root()
    made = context(tmp_path, authority.issue("localhost"), tickets=1)
    (tmp_path / "ca.pem").write_bytes(certs.pem(authority.certificate))
    with turning(shakes(made, never_ends), hangs, after=1000) as bot:
        ended = botproxy(
            *BENCH,
            *("--json", "--seconds", "0.3", "--clients", "2", f"https://localhost:{bot.port}"),
            env={"SSL_CERT_FILE": str(tmp_path / "ca.pem")},
        )
    answer = json.loads(ended.out)
    assert answer["trusted"]
    full, resumed = answer["measures"]
    for each in (full, resumed):
        assert each["errors"] == {NOT_ENDED: 2}
        assert each["seconds"] < 0.3 + handshakes.GRACE + 1.0
    assert f"TLSv1.3 resumed: 2 failed: {NOT_ENDED}\n" in ended.err
    assert ended.code == 1


def test_a_server_that_never_ends_is_waited_for_no_longer_than_any_other(made):
    with turning(shakes(made, never_ends), hangs, after=1000) as bot:
        tally = tally_of(bot.port, Limits(30.0, 1, 1))
    assert tally.errors == {NOT_ENDED: 1}
    assert handshakes.PATIENCE <= tally.seconds < handshakes.PATIENCE + 3.0


def test_a_server_that_never_stops_talking_does_not_end_a_connection_either(made):
    def talks(wire: Wire) -> None:
        while True:
            wire.send(b"x" * 65536)

    with turning(shakes(made, talks), hangs, after=1000) as bot:
        tally = tally_of(bot.port, Limits(0.3, 5000, 1))
    assert tally.errors == {NOT_ENDED: 1}
    assert tally.seconds < 0.3 + handshakes.GRACE + 1.0


@pytest.mark.parametrize("version", handshakes.VERSIONS)
def test_a_server_that_speaks_first_may_do_so(made, version):
    """What it says comes with the end of its handshake in TLS 1.2, and behind the client's goodbye in 1.3."""
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    with turning(greets(made), hangs, after=1000) as bot:
        where = target(f"https://127.0.0.1:{bot.port}", None)
        tally = measure(where, version, "full", Limits(30.0, 50, 4), lambda share: None)
    assert (len(tally.latencies), tally.errors) == (50, {})


def test_tickets_behind_the_goodbye_do_not_count_as_the_servers(tmp_path):
    """They come when the client has said it; until the server has done so as well, it is waited for."""
    made = context(tmp_path, certs.root().issue("localhost"), tickets=2)
    with turning(shakes(made, never_ends), hangs, after=1000) as bot:
        tally = tally_of(bot.port, Limits(0.3, 5000, 1))
    assert (tally.latencies, tally.errors) == ([], {NOT_ENDED: 1})


def test_a_version_that_gets_no_answer_is_a_failure_and_not_one_that_is_not_offered(made):
    """The last look, at TLS 1.2, is the one that hangs."""
    only_once = iter([hangs])
    with turning(shakes(made), lambda wire: next(only_once, shakes(made))(wire), after=LOOK - 1) as bot:
        ended = botproxy(*BENCH, "--json", "--count", "1", f"https://localhost:{bot.port}")
    answer = json.loads(ended.out)
    assert (answer["not_offered"], answer["failed"]) == ({}, {"TLSv1.2": SILENT})
    assert f"no handshake in TLSv1.2: {SILENT}\n" in ended.err
    assert (ended.code, answer["ok"]) == (1, False)


def test_a_server_in_clear_text_is_told_from_one_with_another_tls():
    with turning(speaks_http, speaks_http, after=0) as bot:
        ended = botproxy(*BENCH, f"https://localhost:{bot.port}")
    assert (ended.code, ended.out) == (1, "")
    assert "no handshake in TLSv1.3: the server does not speak TLS\n" in ended.err


def speaks_http(wire: Wire) -> None:
    wire.read_some()
    wire.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


# The command line


def test_machines_get_an_object_where_nobody_answers():
    port = free_port()
    ended = botproxy(*BENCH, "--json", f"https://127.0.0.1:{port}")
    answer = json.loads(ended.out)
    assert (answer["ok"], answer["port"], answer["measures"]) == (False, port, [])
    assert answer["failed"] == {"TLSv1.3": "connection refused", "TLSv1.2": "connection refused"}
    assert ended.code == 1


def test_machines_get_an_object_where_the_host_is_not_known():
    ended = botproxy(*BENCH, "--json", "--own-host", "no.invalid", "https://no.invalid")
    assert (ended.code, json.loads(ended.out)["ok"]) == (1, False)
    assert "no.invalid" in ended.err


def test_an_address_of_version_6_is_written_as_in_urls(tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with serving("demo", "--listen", "[::1]:0", "--state-dir", str(tmp_path)) as demo:
        port = demo.read_out(r"https://localhost:(\d+)/")[1]
        ended = botproxy(*BENCH, "--count", "1", f"https://[::1]:{port}/some/path?query")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"[::1]:{port} at ::1; its certificate is not trusted here: ")


# Ctrl-C


@contextmanager
def bench(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "botproxy", *BENCH, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def interrupt(process: subprocess.Popen[str]) -> Ended:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    return Ended(process.returncode, out, err)


@pytest.mark.usefixtures("interruptible")
def test_what_was_counted_before_an_interrupt_is_shown(made):
    with (
        turning(shakes(made), hangs, after=100000) as bot,
        bench("--seconds", "30", "--clients", "1", f"https://localhost:{bot.port}") as process,
    ):
        bot.wait_for(lambda: bot.connections >= LOOK + 20)
        ended = interrupt(process)
    assert (ended.code, ended.err) == (130, "botproxy: error: interrupted\n")
    full = next(line for line in ended.out.splitlines() if line.startswith("TLSv1.3 full"))
    assert int(full.split()[5]) >= 19
    assert full.split()[6] == "0"


@pytest.mark.usefixtures("interruptible")
def test_machines_are_told_of_an_interrupt_while_connections_hang(made):
    with (
        turning(shakes(made), hangs, after=LOOK + 3) as bot,
        bench("--json", "--seconds", "30", "--clients", "1", f"https://localhost:{bot.port}") as process,
    ):
        bot.wait_for(lambda: bot.connections == LOOK + 4)
        ended = interrupt(process)
    answer = json.loads(ended.out)
    assert (ended.code, answer["interrupted"], answer["ok"]) == (130, True, False)
    assert [(each["kind"], each["handshakes"]) for each in answer["measures"]] == [("full", 3)]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_before_anything_was_counted():
    with turning(hangs, hangs, after=0) as bot, bench(f"https://localhost:{bot.port}") as process:
        bot.wait_for(lambda: bot.connections >= 2)
        ended = interrupt(process)
    assert ended == Ended(130, "", "botproxy: error: interrupted\n")


# A terminal


def test_a_terminal_is_told_at_once_what_is_waited_for(made):
    seen = threading.Event()

    def waits(wire: Wire) -> None:
        seen.wait(PATIENCE)
        shakes(made)(wire)

    controller, terminal = pty.openpty()
    with turning(waits, waits, after=0) as bot:
        process = subprocess.Popen(
            [sys.executable, "-m", "botproxy", *BENCH, "--count", "1", f"https://localhost:{bot.port}"],
            stdout=subprocess.DEVNULL,
            stderr=terminal,
            env=environment({"TERM": "xterm"}),
        )
        os.close(terminal)
        shown = read_until(controller, f"asking https://localhost:{bot.port}".encode())
        seen.set()
        shown += read_until(controller, None)
        assert process.wait(PATIENCE) == 0
    os.close(controller)
    note, _, rest = shown.partition(b"\r")
    assert note == f"asking https://localhost:{bot.port} what it offers".encode()
    assert rest.startswith(b" " * len(note) + b"\r"), "the line is gone when the bar comes"
    assert b"####" in rest


def read_until(descriptor: int, mark: bytes | None) -> bytes:
    """What a terminal shows, up to `mark` or its end."""
    shown = b""
    while (mark is None or mark not in shown) and select.select([descriptor], [], [], PATIENCE)[0]:
        try:
            shown += os.read(descriptor, 4096)
        except OSError:
            break  # the other side is closed
    assert mark is None or mark in shown, shown
    return shown
