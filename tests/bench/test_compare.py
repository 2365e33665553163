"""A real comparison, as small as can be: what it writes, and what it takes for no number."""

from __future__ import annotations

import json
import ssl
from dataclasses import asdict

import pytest

from bench.compare.__main__ import Plan, main
from bench.compare.cases import BY_NAME
from bench.compare.fleet import LOAD_CORE, fleet
from bench.compare.load import Load, Order
from bench.compare.rounds import wrong
from bench.peers.botproxy import Botproxy
from bench.peers.peer import Peer, Told
from tests.certs import root

VISIT = BY_NAME["visit"]


def offers_one_group() -> bool:
    """Python before 3.11.4 does not know the group of TLS 1.3."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ecdh_curve(VISIT.group)
    except ssl.SSLError:
        return False
    return True


loads = pytest.mark.skipif(not offers_one_group(), reason="its client cannot offer one group alone")


class Absent(Peer):
    name = "absent"
    program = "a-program-that-is-not-installed"
    template = "nginx.conf"
    command = ""

    @classmethod
    def version(cls) -> str:
        return "none"

    @property
    def arguments(self) -> tuple[str, ...]:
        return (self.program,)

    def tell(self) -> Told:
        return Told(0.0, None)


@loads
def test_a_run_writes_every_round_and_says_who_is_missing(tmp_path):
    plan = Plan(tmp_path, peers=[Botproxy, Absent], cases=[VISIT], rounds=2, slice=0.05, parts=["cases"])
    assert main(plan) == 0
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert versions["peers"]["absent"] == "missing"
    case = json.loads((tmp_path / "case-visit.json").read_text())
    assert case["problems"] == {"absent": "missing"}
    for one in case["slices"]["botproxy"]:
        assert one["error_count"] == 0
        assert one["operations"] > 0
        assert one["cpu"] > 0
        assert [seen[:4] for seen in one["handshakes"]] == [["TLSv1.3", VISIT.suite, False, 2]]
    assert len(case["slices"]["botproxy"]) == 2
    assert len(case["slices"]["OpenSSL, one ticket"]) == 2


def test_the_load_takes_no_other_certificate(tmp_path):
    other = root().intermediate().issue("localhost").write(tmp_path)
    with fleet([Botproxy], "ecdsa") as ready, Load(LOAD_CORE) as load:
        assert not ready.problems
        load.prepare(Order("visit", ready.peers["botproxy"].site.port, other.chain, seconds=0.05))
        seen = load.go()
    assert seen["operations"] == 0
    assert "another certificate" in seen["errors"][0]


@loads
def test_the_load_counts_what_it_is_told_to_count():
    with fleet([Botproxy], "ecdsa") as ready, Load(LOAD_CORE) as load:
        port = ready.peers["botproxy"].site.port
        load.prepare(Order("keep-alive", port, str(ready.lineage.fullchain), count=7))
        assert load.go()["operations"] == 7


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"error_count": 1, "errors": ["Wrong: another answer"]}, "another answer"),
        ({"operations": 0}, "nothing was done"),
        ({"handshakes": [["TLSv1.2", VISIT.suite, False, 2, 9]]}, "TLSv1.2"),
        ({"handshakes": [["TLSv1.3", "TLS_AES_128_GCM_SHA256", False, 2, 9]]}, "AES_128"),
        ({"handshakes": [["TLSv1.3", VISIT.suite, True, 0, 9]]}, "True"),
        ({"handshakes": [["TLSv1.3", VISIT.suite, False, 1, 9]]}, "1 certificates"),
    ],
)
def test_a_slice_with_anything_else_in_it_is_no_number(change, why):
    right = {
        "operations": 9,
        "error_count": 0,
        "errors": [],
        "handshakes": [["TLSv1.3", VISIT.suite, False, 2, 9]],
    }
    assert wrong(VISIT, right) is None
    assert why in str(wrong(VISIT, {**right, **change})), asdict(VISIT)
