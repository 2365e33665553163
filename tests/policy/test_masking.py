"""A secret in a path must not reach a log; a word may."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from botproxy.policy.masking import LIMIT, masked_path


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/telegram",
        "/api/v1.2/users/42",
        "/Webhook",
        "/slack/events",
        "/favicon.ico",
        "/.well-known/x",
        "/a//b/",
        "/health_check",
        "/2024/11/23",
        "*",
        "/~user/x-y",
    ],
)
def test_words_versions_and_small_numbers_are_shown(path: str) -> None:
    assert masked_path(path.encode()) == path


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/bot123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw/getMe", "/***/getMe"),
        ("/bot123%3AAAHdqTcvCH1/x", "/***/x"),
        ("/%62%6ft1", "/***"),
        ("/api/webhooks/1099511627776123456/aB3-_xYz", "/api/webhooks/***/***"),
        ("/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX", "/services/***/***/***"),
        ("/hook/6ba7b810-9dad-11d1-80b4-00c04fd430c8", "/hook/***"),
        ("/hook/deadbeef", "/hook/***"),
        ("/hook/DEADBEEFCAFE", "/hook/***"),
        ("/hook/a1b2c3d4", "/hook/***"),
        ("/hook/20241123", "/hook/***"),
        ("/hook/aVeryRandom", "/hook/***"),
        ("/hook/correct-horse-battery", "/hook/***"),
        ("/u:p@x/a=b/c;d/e,f", "/***/***/***/***"),
        ("/a/b?token=secret", "/a/b"),
        ("/tok\x00\x1b\n\xff\"'<", "/***"),
    ],
)
def test_everything_else_is_masked(path: str, shown: str) -> None:
    assert masked_path(path.encode("latin-1")) == shown


def test_a_long_path_is_cut_between_segments() -> None:
    """Half a token may look like a word."""
    secret = "s" * 30
    shown = masked_path(b"/wordwordwordwor" * 31 + b"/" + secret.encode())
    assert "s" not in shown
    assert shown.endswith("...")
    assert len(shown) <= LIMIT + 3


def test_depth_is_bounded_and_the_rest_is_masked() -> None:
    assert masked_path(b"/a" * 40) == "/a" * 31 + "/***"


@given(st.binary(max_size=700))
def test_what_is_shown_needs_no_escaping(target: bytes) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._~*/-]{0,515}", masked_path(target))


TOKENS = st.one_of(
    st.text(string.ascii_letters + string.digits + "-_", min_size=16, max_size=64),
    st.text("0123456789abcdef", min_size=8, max_size=64),
    st.uuids().map(str),
    st.text(string.digits, min_size=8, max_size=20),
    st.from_regex(r"[0-9]{3,10}:[A-Za-z0-9_-]{5,35}", fullmatch=True),
    st.from_regex(r"[A-Za-z]{1,6}[0-9][A-Za-z]{1,6}[0-9]{2,6}", fullmatch=True).filter(
        lambda text: len(text) > 7
    ),
)


@given(TOKENS, st.booleans())
def test_a_token_is_never_shown(token: str, encoded: bool) -> None:
    sent = f"%{ord(token[0]):02x}{token[1:]}" if encoded else token
    assert masked_path(f"/hook/{sent}/end".encode()) == "/hook/***/end"
