"""Reason phrases are ours and harmless."""

from __future__ import annotations

import re
from http import HTTPStatus

from botproxy.reasons import REASONS


def test_every_status_that_python_knows_has_a_phrase() -> None:
    unregistered = {418}  # (Unused), RFC 9110 15.5.19
    assert {int(status) for status in HTTPStatus} - unregistered <= set(REASONS)


def test_no_phrase_could_break_a_status_line() -> None:
    assert all(re.fullmatch(rb"[A-Za-z -]{2,40}", phrase) for phrase in REASONS.values())
    assert all(100 <= status <= 599 for status in REASONS)
