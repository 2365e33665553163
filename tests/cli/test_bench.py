"""`botproxy bench handshake` against botproxy itself, and against servers that offer less or fail."""

from __future__ import annotations

import json
import os
import pty
import select
import socket
import ssl
import subprocess
import sys
import time

import pytest

from botproxy.cli.bench import permitted
from botproxy.cli.handshakes import Limits, measure, percentile
from botproxy.cli.target import is_ours, target
from tests import certs
from tests.cli.command import PATIENCE, botproxy, environment, serving
from tests.cli.tls_server import context, server
from tests.harness import free_port

ELSEWHERE = "203.0.113.77"
"""Of nobody (RFC 5737)."""
REFUSED = "the server refuses the connection: internal error"
SHORT = ("--seconds", "0.3", "--clients", "2")


def test_botproxy_is_measured_in_both_versions_full_and_resumed(tmp_path):
    with serving("demo", "--listen", "127.0.0.1:0", "--state-dir", str(tmp_path)) as demo:
        port = demo.read_out(r"https://localhost:(\d+)/")[1]
        ended = botproxy("bench", "handshake", "--json", *SHORT, f"https://localhost:{port}")
        text = botproxy("bench", "handshake", *SHORT, f"https://localhost:{port}")
    assert (ended.code, ended.err) == (0, "")
    answer = json.loads(ended.out)
    assert answer["ok"]
    assert answer["on_this_machine"]
    assert not answer["trusted"]
    assert [(each["protocol"], each["kind"]) for each in answer["measures"]] == [
        ("TLSv1.3", "full"),
        ("TLSv1.3", "resumed"),
        ("TLSv1.2", "full"),
        ("TLSv1.2", "resumed"),
    ]
    for each in answer["measures"]:
        assert each["key"] == "ECDSA P-256"
        assert "GCM" in each["cipher"]
        assert each["handshakes"] > 0
        assert each["errors"] == {}
        assert each["per_second"] > 0
        assert 0 < each["p50_ms"] <= each["p99_ms"]
    assert (text.code, text.err) == (0, "")
    assert [line.split()[:2] for line in text.out.splitlines() if line.startswith("TLSv")] == [
        ["TLSv1.3", "full"],
        ["TLSv1.3", "resumed"],
        ["TLSv1.2", "full"],
        ["TLSv1.2", "resumed"],
    ]


def test_what_a_server_does_not_offer_is_said_and_no_failure(tmp_path):
    authority = certs.root()
    issued = authority.issue("localhost", key=certs.rsa_key())
    (tmp_path / "ca.pem").write_bytes(certs.pem(authority.certificate))
    with server(context(tmp_path, issued)) as url:
        ended = botproxy(
            "bench", "handshake", "--json", *SHORT, url, env={"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        )
    assert (ended.code, ended.err) == (0, "")
    answer = json.loads(ended.out)
    assert answer["trusted"]
    assert list(answer["not_offered"]) == ["TLSv1.2"]
    full, resumed = answer["measures"]
    assert (full["protocol"], full["key"], full["offered"]) == ("TLSv1.3", "RSA 2048", True)
    assert not resumed["offered"]
    assert "per_second" not in resumed


def test_every_failure_is_counted_and_the_exit_code_is_1(tmp_path):
    made = context(tmp_path, certs.root().issue("localhost"))
    left = iter([None] * 5)  # those that find out what there is, and three more
    made.sni_callback = lambda *_: next(left, ssl.AlertDescription.ALERT_DESCRIPTION_INTERNAL_ERROR)
    with server(made) as url:
        ended = botproxy("bench", "handshake", "--json", *SHORT, url)
    assert ended.code == 1
    full, _ = json.loads(ended.out)["measures"]
    assert full["handshakes"] == 3
    assert list(full["errors"]) == [REFUSED]
    assert f"TLSv1.3 full: {full['errors'][REFUSED]} failed: {REFUSED}\n" in ended.err


def test_nobody_there_is_exit_code_1():
    ended = botproxy("bench", "handshake", f"https://127.0.0.1:{free_port()}")
    assert (ended.code, ended.out) == (1, "")
    assert "connection refused" in ended.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((f"https://{ELSEWHERE}",), "expected a server on this machine"),
        (("--own-host", "example.com", f"https://{ELSEWHERE}"), 'option "--own-host"'),
        (("http://localhost",), 'expected "https://HOST[:PORT]"'),
        (("https://localhost:99999",), 'expected "https://HOST[:PORT]"'),
        (("https://localhost:0",), 'expected "https://HOST[:PORT]"'),
        (("--seconds", "3600", "https://localhost"), "seconds"),
        (("--count", "1000000", "https://localhost"), "count"),
        (("--clients", "1000", "https://localhost"), "clients"),
    ],
)
def test_what_may_not_be_measured_is_a_usage_error(arguments, says):
    ended = botproxy("bench", "handshake", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err


def test_an_address_is_ours_if_the_kernel_lets_us_have_it():
    assert is_ours(socket.AF_INET, ("127.0.0.1", 443))
    assert is_ours(socket.AF_INET, ("127.9.9.9", 443))
    assert not is_ours(socket.AF_INET, (ELSEWHERE, 443))


def test_where_the_kernel_lets_anybody_have_any_address_only_loopback_is_ours(tmp_path, monkeypatch):
    forced = tmp_path / "ip_nonlocal_bind"
    forced.write_text("1\n")
    monkeypatch.setattr("botproxy.cli.target.FORCED", (forced,))
    assert is_ours(socket.AF_INET, ("127.0.0.1", 443))
    assert is_ours(socket.AF_INET6, ("::1", 443, 0, 0))
    assert not is_ours(socket.AF_INET, ("0.0.0.0", 443))


def test_a_server_elsewhere_is_asked_slowly_whatever_was_asked_for():
    asked = Limits(30.0, 5000, 16)
    assert permitted(asked, local=True) == asked
    assert permitted(asked, local=False) == Limits(5.0, 5000, 1, rate=10.0)


def test_a_rate_is_kept(tmp_path):
    made = context(tmp_path, certs.root().issue("localhost"))
    with server(made) as url:
        began = time.monotonic()
        tally = measure(
            target(url, None), "TLSv1.3", "full", Limits(10.0, 6, 3, rate=20.0), lambda share: None
        )
    assert len(tally.latencies) == 6
    assert time.monotonic() - began >= 5 / 20.0


def test_a_count_is_kept_and_progress_ends_at_all_of_it(tmp_path):
    shares: list[float] = []
    with server(context(tmp_path, certs.root().issue("localhost"))) as url:
        tally = measure(target(url, None), "TLSv1.3", "full", Limits(60.0, 7, 3), shares.append)
    assert len(tally.latencies) == 7
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_percentiles_are_values_that_were_measured():
    hundred = [float(number) for number in range(1, 101)]
    assert (percentile(hundred, 50), percentile(hundred, 99)) == (50.0, 99.0)
    assert percentile([3.0], 99) == 3.0


def test_a_terminal_gets_a_bar(tmp_path):
    controller, terminal = pty.openpty()
    with server(context(tmp_path, certs.root().issue("localhost"))) as url:
        process = subprocess.Popen(
            [sys.executable, "-m", "botproxy", "bench", "handshake", "--json", *SHORT, url],
            stdout=subprocess.PIPE,
            stderr=terminal,
            env=environment({"TERM": "xterm"}),
        )
        os.close(terminal)
        shown = b""
        while select.select([controller], [], [], PATIENCE)[0]:
            try:
                shown += os.read(controller, 4096)
            except OSError:
                break  # the other side is closed
        out, _ = process.communicate(timeout=PATIENCE)
    os.close(controller)
    assert process.returncode == 0
    assert b"TLSv1.3 full" in shown
    assert b"####" in shown
    assert json.loads(out)["ok"]
