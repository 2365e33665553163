"""The access log: every line is JSON, and nothing in it was chosen by a client unescaped."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from botproxy.model import Peer, Record, TlsInfo
from botproxy.observe import access

NOW = 1795464001.0426
PEER = Peer("203.0.113.7", 40000, 443)
TLS = TlsInfo("TLSv1.3", "TLS_AES_128_GCM_SHA256", "bot.example", False, 0.00214, True)


def record(**changes: Any) -> Record:
    made = Record("0123456789abcdef", PEER, "203.0.113.7", 1.0, TLS)
    usual = {
        "method": b"POST",
        "target": b"/telegram/bot123:SECRET?token=SECRET",
        "status": 200,
        "bytes_in": 350,
        "bytes_out": 15,
        "route": "bot.example/telegram",
        "upstream": "bot",
        "reused": True,
        "hold": 0.5,
        "upstream_seconds": 0.01234,
        "total": 0.51301,
    }
    for name, value in (usual | changes).items():
        assert hasattr(made, name)
        setattr(made, name, value)
    return made


def logged(**changes: Any) -> dict[str, Any]:
    line = access.line(record(**changes), NOW)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert line.isascii()
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def test_a_request_is_one_line_with_all_that_is_known() -> None:
    assert logged() == {
        "time": "2026-11-23T20:00:01.042Z",
        "id": "0123456789abcdef",
        "client": "203.0.113.7",
        "method": "POST",
        "path": "/telegram/***",
        "status": 200,
        "bytes_in": 350,
        "bytes_out": 15,
        "route": "bot.example/telegram",
        "upstream": "bot",
        "reused": True,
        "hold_ms": 500.0,
        "upstream_ms": 12.3,
        "total_ms": 513.0,
        "tls": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256",
        "sni": "bot.example",
        "resumed": False,
    }


def test_the_handshake_stands_with_the_first_request_of_its_connection() -> None:
    assert logged(first_on_connection=True)["handshake_ms"] == 2.1
    assert "handshake_ms" not in logged()


def test_the_peer_stands_where_it_is_not_the_client() -> None:
    shown = logged(client="198.51.100.9")
    assert (shown["client"], shown["peer"]) == ("198.51.100.9", "203.0.113.7")
    assert "peer" not in logged()


def test_a_request_refused_before_a_route_was_found_names_none() -> None:
    shown = logged(
        route="", upstream="", method=b"", target=b"", status=400, error="bad_request", detail="why"
    )
    assert not {"route", "upstream", "reused", "hold_ms", "upstream_ms"} & shown.keys()
    assert (shown["path"], shown["method"], shown["error"], shown["detail"]) == ("", "", "bad_request", "why")


def test_clear_text_has_no_tls_and_a_client_without_a_name_no_sni() -> None:
    assert not {"tls", "cipher", "sni", "resumed", "handshake_ms"} & logged(tls=None).keys()
    assert "sni" not in logged(tls=replace(TLS, sni=None))
    assert logged(tls=replace(TLS, resumed=True))["resumed"] is True


def test_tunnels_and_errors_are_shown_when_there_are_any() -> None:
    assert not {"tunnel", "error", "detail"} & logged().keys()
    shown = logged(tunnel=True, status=499, error="client_gone")
    assert (shown["tunnel"], shown["status"], shown["error"]) == (True, 499, "client_gone")


def test_times_are_utc_with_milliseconds() -> None:
    for now, text in [(0.0, "1970-01-01T00:00:00.000Z"), (1795464000.9999, "2026-11-23T20:00:00.999Z")]:
        assert json.loads(access.line(record(), now))["time"] == text


@given(st.binary(max_size=300), st.binary(max_size=40), st.text(max_size=300), st.text(max_size=300))
def test_no_byte_of_a_client_breaks_a_line(target: bytes, method: bytes, name: str, given_id: str) -> None:
    shown = logged(target=target, method=method, tls=replace(TLS, sni=name), id=given_id, client=name)
    assert shown["method"] == method.decode("latin-1")
    for text, original in [(shown["sni"], name), (shown["id"], given_id), (shown["client"], name)]:
        assert text == (
            original if len(original) <= access.TEXT_LIMIT else original[: access.TEXT_LIMIT] + "..."
        )


def test_a_line_fits_into_one_write_to_a_pipe() -> None:
    hostile = "\xff" * 10_000
    line = access.line(
        record(target=b"/x" * 4096, method=b"\xff" * 32, tls=replace(TLS, sni=hostile), error="x"),
        NOW,
    )
    assert len(line) <= 4096


def test_a_refused_certificate_is_one_line() -> None:
    line = access.handshake_line("203.0.113.7", 'a"\n\xff', "unknown_ca", 0.0123, NOW)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "time": "2026-11-23T20:00:01.042Z",
        "client": "203.0.113.7",
        "sni": 'a"\n\xff',
        "error": "handshake",
        "alert": "unknown_ca",
        "handshake_ms": 12.3,
    }
    assert "sni" not in json.loads(access.handshake_line("203.0.113.7", None, "unknown_ca", 0.0, NOW))


def test_lost_lines_are_one_line() -> None:
    line = access.lost_line(17)
    assert line.endswith(b"}\n")
    shown = json.loads(line)
    assert (shown["error"], shown["count"]) == ("lines_lost", 17)


def test_targets_of_any_length_are_not_remembered() -> None:
    def line(number: int) -> None:
        assert logged(target=b"/%d-" % number + b"x" * 4000)["path"].startswith("/")

    line(0)
    before = sys.getallocatedblocks()
    for number in range(1000):
        line(number)
    assert sys.getallocatedblocks() - before < 500
