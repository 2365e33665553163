"""Every line of the audit is whole, and every line stays."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from botproxy.keeper import audit
from tests.keeper.conftest import no_room


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "certs" / "audit.jsonl"


def test_entries_follow_each_other_one_on_a_line(file: Path):
    entries: list[dict[str, object]] = [
        {"result": "active", "seconds": {"noticing": 0.5}},
        {"reason": "nicht geprüft\n\u2028"},
        {},
    ]
    for entry in entries:
        audit.append(file, entry)
    assert [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]] == entries
    assert file.read_bytes().isascii()


@pytest.mark.parametrize("mask", [0, 0o022, 0o077], ids=oct)
def test_nobody_else_reads_it_whatever_the_umask(file: Path, mask: int):
    before = os.umask(mask)
    try:
        audit.append(file, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_full_disk_is_an_error_and_leaves_no_half_line(file: Path):
    audit.append(file, {"number": 1})
    before = file.read_bytes()
    for room in (0, 1, 10):
        with no_room(len(before) + room), pytest.raises(OSError, match=r"No space|File too large"):
            audit.append(file, {"number": 2})
        assert file.read_bytes() == before
    audit.append(file, {"number": 3})
    assert file.read_bytes() == before + b'{"number":3}\n'


# What is served


@pytest.mark.parametrize(
    ("result", "served"), [("active", 2), ("unverified", 2), ("rejected", 1), ("rolled_back", 1)]
)
def test_the_last_line_about_a_certificate_says_what_is_served(file: Path, result: str, served: int):
    old, new = {"generation": 1}, {"generation": 2}
    for certificate, happened in (("site", "rejected"), ("site", result), ("other", "active")):
        audit.append(file, {"certificate": certificate, "result": happened, "old": old, "new": new})
    assert audit.served_last(file, "site") == {"generation": served}


def test_what_is_not_known_is_none(file: Path):
    assert audit.served_last(file, "site") is None
    audit.append(file, {"certificate": "other", "result": "active", "old": None, "new": {}})
    assert audit.served_last(file, "site") is None
    audit.append(file, {"certificate": "site", "result": "rejected", "old": None, "new": {}})
    assert audit.served_last(file, "site") is None


def test_lines_that_are_none_are_passed_over(file: Path):
    audit.append(file, {"certificate": "site", "result": "active", "old": None, "new": {"generation": 1}})
    with file.open("ab") as opened:
        opened.write(b'\n\xff\n[]\n1\n{"certificate":"site"}\n{"certificate":"site","result":"act')
    assert audit.served_last(file, "site") == {"generation": 1}


def test_only_the_end_of_a_long_file_is_read(file: Path):
    line = {"certificate": "site", "result": "active", "old": None, "new": {"generation": 1}}
    audit.append(file, line)
    with file.open("ab") as opened:
        opened.truncate(64 * 1024 * 1024)
        opened.seek(0, os.SEEK_END)
        opened.write(b"\n")
    assert audit.served_last(file, "site") is None
    audit.append(file, line)
    assert audit.served_last(file, "site") == {"generation": 1}


# Trouble


def test_a_link_in_its_place_is_not_written_through(file: Path, tmp_path: Path):
    file.parent.mkdir()
    victim = tmp_path / "victim"
    victim.touch()
    file.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        audit.append(file, {})
    assert victim.read_bytes() == b""


def test_no_descriptor_is_lost(file: Path):
    before = sorted(os.listdir("/proc/self/fd"))
    audit.append(file, {})
    with no_room(), pytest.raises(OSError, match="File too large"):
        audit.append(file, {})
    assert sorted(os.listdir("/proc/self/fd")) == before
