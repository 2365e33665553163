"""The page and its charts, from files of a run."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from bench.compare import report

CASE = {
    "name": "visit",
    "title": "full handshake + one request",
    "operation": "visit",
    "keys": "ecdsa",
    "version": "1.3",
    "suite": "TLS_AES_256_GCM_SHA384",
    "group": "X25519",
    "connections": 16,
    "seconds": 0.3,
}


def slices(micros: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "operations": 100,
            "seconds": 0.1,
            "cpu": 100 * each / 1e6,
            "ticks": 0.04,
            "kernel": 0.01,
            "load_cpu": 0.05,
            "bot_cpu": 0.01,
            "latency": {"p50": 1000.0, "p99": 2000.0, "p99.9": 2500.0, "max": 3000.0},
        }
        for each in micros
    ]


@pytest.fixture
def found(tmp_path):
    """Of a small run, in a folder."""
    versions = {
        "system": "Linux",
        "processor": "a processor",
        "processors": 2,
        "python": "3.11",
        "commit": "0123456789ab, changed",
        "openssl": "OpenSSL 3",
        "system_openssl": "OpenSSL 3.1",
        "uvloop": "0.21",
        "peers": {"botproxy": "0.1", "nginx": "1.22", "Node": "20", "granian": "missing"},
    }
    case = {
        "case": CASE,
        "rounds": 3,
        "problems": {"granian": "missing", "Node": "failed: Wrong: another answer"},
        "slices": {
            "botproxy": slices([300.0, 330.0, 360.0]),
            "nginx": slices([300.0, 300.0, 300.0]),
            "Node": slices([900.0]),
            "OpenSSL, one ticket": slices([200.0, 200.0, 200.0]),
        },
    }
    counted = {
        "tool": "valgrind",
        "cases": {
            "visit": {
                "botproxy": {
                    "instructions": 3_000,
                    "objects": {"libcrypto": 2_000, "python": 990, "libm": 10},
                },
                "nginx": {"instructions": 2_500, "objects": {"libcrypto": 2_200, "nginx": 300}},
                "HAProxy": {"error": "CountError: no count"},
            }
        },
    }
    files: dict[str, dict[str, Any]] = {
        "instructions": counted,
        "versions": versions,
        "case-visit": case,
        "idle": {"error": "OSError: no more files"},
        "rest": {
            "problems": {"granian": "missing"},
            "peers": {
                "botproxy": {"at_rest": 66_000_000, "processes": 3},
                "mitmproxy": {"at_rest": 99_000_000, "processes": 1},
            },
        },
        "steady": {
            "rate": 200.0,
            "problems": {},
            "slices": {
                "botproxy": [each | {"times": [1000, 9000]} for each in slices([600.0, 630.0, 660.0])],
                "nginx": [each | {"times": [1000, 3000]} for each in slices([400.0, 400.0, 400.0])],
            },
        },
    }
    for name, each in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"date": "2026-01-01", "took_seconds": 1, **each}))
    return tmp_path


def made(found: Path) -> str:
    assert report.main(found, found / "RESULTS.md") == 0
    return (found / "RESULTS.md").read_text()


def test_a_figure_is_the_median_of_the_ratios_of_each_round(found):
    assert "| **botproxy** | **1.10 (1.05-1.15)** | **330.0 us** |" in made(found)


def test_a_target_that_is_missed_says_by_how_much(found):
    line = next(line for line in made(found).splitlines() if "ECDSA P-256, and a request" in line)
    assert line.endswith("| 1 | 1.10 | missed by 10 % |")


def test_whose_instructions_they_are_stands_beside_those_of_nginx(found):
    lines = made(found).splitlines()
    assert "|  | botproxy, visit | nginx, visit |" in lines
    assert "| libcrypto | 2,000 | 2,200 |" in lines
    assert "| nginx | 0 | 300 |" in lines
    assert "| all | 3,000 | 2,500 |" in lines
    assert not [line for line in lines if line.startswith("| libm ")]


def test_the_share_of_the_kernel_stands_beside_the_cpu(found):
    assert "| **botproxy** | **1.10 (1.05-1.15)** | **330.0 us** | **25%** |" in made(found)


def test_a_peer_that_failed_is_called_so_and_has_no_figure(found):
    page = made(found)
    (line,) = [line for line in page.splitlines() if line.startswith("| Node | failed")]
    assert "900" not in line
    assert "- case-visit, Node: failed: Wrong: another answer" in page
    assert "- case-visit, granian: missing" in page
    assert "- idle: OSError: no more files" in page
    assert "- instructions visit, HAProxy: CountError: no count" in page


def test_a_rate_is_in_brackets_where_the_server_was_not_busy(found):
    page = made(found)
    (line,) = [line for line in page.splitlines() if line.startswith("| nginx | 1.00 (1.00-1.00) | 300")]
    assert "| (1,000) |" in line


def test_charts_are_of_those_that_have_figures(found):
    made(found)
    (chart,) = (found / "charts").glob("case-*.svg")
    texts = [each.text for each in ElementTree.parse(chart).iter("{http://www.w3.org/2000/svg}text")]
    assert "botproxy" in texts
    assert "1.10" in texts
    assert "Node" not in texts


def test_memory_at_rest_is_of_each_alone_and_has_its_limit(found):
    page = made(found)
    assert "| process tree at rest, one worker, MB | 60 | 66.00 | missed by 10 % |" in page
    assert "| process tree at rest | - | - | - | 1.5 |" in page
    assert "| **botproxy** | **66.0 MB** | **3** |" in page


def test_at_a_fixed_rate_the_cpu_stands_beside_the_waiting(found):
    page = made(found)
    assert "| **botproxy** | **1.57 (1.54-1.61)** | **630 us** | **" in page


def test_the_page_says_of_which_commit_it_is(found):
    assert "at commit 0123456789ab, changed." in made(found)


def test_files_of_two_runs_make_no_page(found):
    file = found / "idle.json"
    file.write_text(file.read_text().replace("2026-01-01", "2026-01-02"))
    assert report.main(found, found / "RESULTS.md") == 1
    assert not (found / "RESULTS.md").exists()
