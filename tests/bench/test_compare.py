"""A real comparison, as small as can be: what it writes, and what it takes for no number."""

from __future__ import annotations

import json
import os
import ssl
from dataclasses import asdict
from typing import ClassVar

import pytest

from bench import instructions
from bench.compare import __main__ as compare
from bench.compare import counted
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


class Dying(Peer):
    name = "dying"
    program = "false"
    template = "nginx.conf"
    command = ""

    def configure(self) -> None:
        """It reads nothing."""

    @classmethod
    def version(cls) -> str:
        return "none"

    @property
    def arguments(self) -> tuple[str, ...]:
        return (self.program,)

    def tell(self) -> Told:
        return Told(0.0, None)


class Absent(Dying):
    name = "absent"
    program = "a-program-that-is-not-installed"


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


@pytest.mark.parametrize(
    "choice", [["--quick"], ["--peer", "nginx"], ["--case", "visit"], ["--part", "idle"]], ids=" ".join
)
def test_a_part_of_everything_does_not_replace_all_results(choice, tmp_path, monkeypatch, capsys):
    kept = tmp_path / "case-visit.json"
    kept.write_text("{}")
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    monkeypatch.setattr(compare, "lacking", lambda: None)
    for arguments in (choice, [*choice, "--results", str(tmp_path)]):
        with pytest.raises(SystemExit) as ended:
            compare.wanted(arguments)
        assert ended.value.code == 2
        assert "name another folder with --results FOLDER" in capsys.readouterr().err
    assert kept.exists()
    other = tmp_path / "other"
    assert compare.wanted([*choice, "--results", str(other)]).results == other
    assert compare.wanted([]).results == tmp_path


def test_a_python_whose_client_cannot_offer_one_group_is_refused_at_once(monkeypatch, capsys):
    class Old(ssl.SSLContext):
        def set_ecdh_curve(self, name: str) -> None:
            raise ssl.SSLError("[EC: UNKNOWN_GROUP] unknown group")

    monkeypatch.setattr(ssl, "SSLContext", Old)
    with pytest.raises(SystemExit) as ended:
        compare.wanted([])
    assert ended.value.code == 2
    assert "3.11.4" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["idle", "steady", "scaling", "reload", "instructions"])
def test_a_peer_that_failed_is_a_failed_run(part, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "RELOADING", (Dying,))
    monkeypatch.setattr(compare, "COUNTED", (Dying,))
    plan = Plan(tmp_path, peers=[Dying], rounds=1, parts=[part], counts={"visit": 1})
    assert main(plan) == 1
    (found,) = [path for path in tmp_path.glob("*.json") if path.name != "versions.json"]
    assert "ended with 1" in found.read_text()


def test_without_valgrind_the_run_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(instructions, "is_here", lambda: False)
    assert main(Plan(tmp_path, peers=[Absent], parts=["instructions"])) == 1


def test_one_that_is_not_installed_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "RELOADING", (Absent,))
    assert main(Plan(tmp_path, peers=[Absent], parts=["idle", "reload"])) == 0


def test_a_count_says_which_tool_has_counted(tmp_path, monkeypatch):
    class Cost:
        def as_json(self) -> dict[str, int]:
            return {"instructions": 1}

    asked = []

    def per_operation(_: object, count: int, *, by_object: bool) -> Cost:
        asked.append(by_object)
        return Cost()

    monkeypatch.setattr(instructions, "per_operation", per_operation)
    monkeypatch.setattr(counted, "BY_OBJECT", (Botproxy,))
    monkeypatch.setattr(Dying, "is_here", lambda: True)
    found = counted.measure([Botproxy, Dying], {"visit": 1})["cases"]["visit"]
    assert found == {
        "botproxy": {"tool": "callgrind", "instructions": 1},
        "dying": {"tool": "cachegrind", "instructions": 1},
    }
    assert sorted(asked) == [False, True]


class Interrupted(Botproxy):
    """While it is waited for, somebody presses Ctrl-C."""

    started: ClassVar[list[int]] = []

    def serves(self) -> bool:
        self.started.append(self.pid)
        raise KeyboardInterrupt


def test_a_run_that_is_cut_leaves_no_peer_behind():
    with pytest.raises(KeyboardInterrupt), fleet([Interrupted], "ecdsa"):
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(Interrupted.started[0], 0)
