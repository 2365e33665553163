"""A real keeper process, whose supervisor and workers this test plays."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from botproxy.config.schema import Config
from botproxy.control import link, packets
from botproxy.control.channel import Commit, Prepare
from botproxy.control.link import (
    Failed,
    Joined,
    Ready,
    Reconfigure,
    Reconfigured,
    Replace,
    Retire,
    Rotate,
    Rotated,
)
from botproxy.keeper import admin
from botproxy.keeper.store import Store
from botproxy.tls.context import CertificateSet
from tests import certs
from tests.certs import Authority, Issued
from tests.harness import Lines
from tests.keeper.conftest import Configure
from tests.keeper.crew import PATIENCE, Crew, Played, crew

ROOT = Path(__file__).parents[2]
UNTOLD = {"events": False, "poll": "1h"}
"""For `watch`: the files are looked at only when somebody asks for it."""


class Keeper:
    """The process, and the ends that the supervisor holds."""

    def __init__(
        self,
        config: Config,
        admin_sock: socket.socket | None,
        port: int | None,
        patience: Mapping[str, float],
    ) -> None:
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link.settimeout(PATIENCE)
        fds = [theirs.fileno(), *([admin_sock.fileno()] if admin_sock else [])]
        given = {
            "config": config.model_dump(mode="json"),
            "control": fds[0],
            "admin": fds[1] if admin_sock else None,
            "port": port,
            "patience": dict(patience),
        }
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.keeper.keeper_process", json.dumps(given)],
                pass_fds=fds,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
        self.log = Lines(self.process.stderr)

    def serve(self) -> None:
        """Let it answer the admin socket."""
        packets.send(self.link, link.Serve())

    def hear(self) -> link.ToSupervisor | None:
        return link.from_child(self.link)

    def join(self, *workers: Played) -> None:
        for worker in workers:
            packets.send(self.link, Joined(worker.slot, worker.pid, worker.keepers_end.fileno()))

    def wait_end(self) -> tuple[int, list[str]]:
        """Exit code and log lines."""
        return self.process.wait(PATIENCE), self.log.join()

    def kill(self) -> None:
        """End it as nothing can be prepared for."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self.link.close()
        self.log.join()


class House:
    """What outlives a keeper: workers, the admin socket, the files and what was kept of them."""

    def __init__(self, config: Config, everybody: Crew, stack: ExitStack) -> None:
        self.config = config
        self.crew = everybody
        self.store = Store(Path(config.state_dir or "") / "certs")
        self._stack = stack
        Path(config.state_dir or "").mkdir(exist_ok=True)
        self._path = Path(config.state_dir or "") / "admin.sock"
        self._admin = None
        if config.admin != "off":
            self._admin = stack.enter_context(admin.bind(self._path))

    def begin(self, *workers: Played, listening: bool = False, **patience: float) -> Keeper:
        """A keeper that does its work, and knows `workers`."""
        keeper = self.start(listening=listening, **patience)
        assert keeper.hear() == Ready()
        keeper.serve()
        keeper.join(*workers)
        return keeper

    def start(self, *, listening: bool = False, **patience: float) -> Keeper:
        keeper = Keeper(self.config, self._admin, self.crew.port if listening else None, patience)
        self._stack.callback(keeper.kill)
        return keeper

    def workers(self, count: int = 2) -> list[Played]:
        return [self.crew.hire(70 + slot, slot) for slot in range(count)]

    def ask(self, target: str, method: str = "GET") -> tuple[int, Any]:
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(PATIENCE)
        connection.sock.connect(str(self._path))
        connection.request(method, target)
        response = connection.getresponse()
        body = json.loads(response.read())
        connection.close()
        return response.status, body

    def reload(self) -> str:
        """What became of the only certificate that was looked at now."""
        [change] = self.ask("/-/reload?wait=1", "POST")[1]["certificates"]
        return str(change["outcome"])

    def until(self, what: Callable[[], bool]) -> None:
        ends = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < ends
            time.sleep(0.01)

    def is_ready(self) -> bool:
        """And every worker serves the same."""
        status, report = self.ask("/-/ready")
        return status == 200 and len({worker["set"] for worker in report["workers"]}) == 1

    def audit(self) -> list[dict[str, Any]]:
        file = self.store.directory.parent / "audit.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def renew(self, issued: Issued) -> None:
        entry = self.config.certificates[0]
        Path(entry.key).write_bytes(issued.key_pem)
        Path(entry.chain).write_bytes(issued.chain_pem)


Housed = Callable[..., House]


@pytest.fixture
def house(configure: Configure) -> Iterator[Housed]:
    """`house(entry, ..., watch={...})`: a house around these certificates."""
    with ExitStack() as stack:
        everybody = stack.enter_context(crew())

        def make(*entries: Any, **keys: Any) -> House:
            return House(configure(*entries, **keys), everybody, stack)

        yield make


@pytest.fixture
def first(ca: Authority) -> Issued:
    return ca.issue("a.test")


@pytest.fixture
def second(ca: Authority) -> Issued:
    return ca.issue("a.test")


def greeting(loaded: CertificateSet | None, client: ssl.SSLContext, name: str) -> str | None:
    """A verified handshake in memory; the version that was agreed on."""
    assert loaded is not None
    served = loaded.select(name)
    assert served is not None
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=name),
        served.context.wrap_bio(up, down, server_side=True),
    ]
    waiting = list(ends)
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
    return ends[0].version()


# From the start


def test_workers_get_the_certificates_and_readiness_follows(house: Housed, ca: Authority, tmp_path: Path):
    there = house(
        ca.issue("a.test").write(tmp_path, "ecdsa"),
        ca.issue("a.test", "*.b.test", key=certs.rsa_key()).write(tmp_path, "rsa"),
        hosts=("a.test", "x.b.test"),
    )
    workers = there.workers()
    there.begin(*workers)
    assert there.ask("/-/live") == (200, {"live": True})
    status, report = there.ask("/-/ready")
    assert (status, report["ready"]) == (503, False)
    assert [each["names"] for each in report["certificates"]] == [["a.test"], ["a.test", "*.b.test"]]
    for worker in workers:
        worker.enrol()
        assert greeting(worker.current, ca.trust(), "a.test") == "TLSv1.3"
        assert greeting(worker.current, ca.trust(), "x.b.test") == "TLSv1.3"
    there.until(there.is_ready)
    _, report = there.ask("/-/ready")
    assert report["workers"] == [
        {"slot": worker.slot, "pid": worker.pid, "set": worker.serving} for worker in workers
    ]


def test_a_worker_that_comes_later_gets_them_too(house: Housed, first: Issued, tmp_path: Path):
    there = house(first.write(tmp_path, "a"))
    keeper = there.begin()
    for pid in (70, 71):
        worker = there.crew.hire(pid)
        keeper.join(worker)
        worker.enrol()
        there.until(there.is_ready)
        worker.leave()
        there.until(lambda: not there.is_ready())


def test_without_admin_it_works_as_well(house: Housed, first: Issued, tmp_path: Path):
    there = house(first.write(tmp_path, "a"), admin="off")
    [worker] = there.workers(1)
    there.begin(worker)
    worker.enrol()


def test_wrong_input_is_exit_code_2_with_every_problem_in_the_log_and_no_ready(
    house: Housed, wrong_key: Issued, ca: Authority, tmp_path: Path
):
    missing = ca.issue("b.test").write(tmp_path, "missing")
    Path(missing.key).unlink()
    keeper = house(wrong_key.write(tmp_path, "wrong"), missing).start()
    code, log = keeper.wait_end()
    assert code == 2
    said = keeper.hear()
    assert isinstance(said, Failed)
    assert len(said.problems) == 2
    with pytest.raises(EOFError):
        keeper.hear()
    errors = [line for line in log if line.startswith("ERROR")]
    assert len(errors) == 2
    assert any("belongs to another certificate" in line for line in errors)
    assert any("does not exist" in line for line in errors)
    assert not any("PRIVATE KEY" in line for line in log)


def test_an_expired_certificate_is_served_loudly(house: Housed, expired_cert: Issued, tmp_path: Path):
    there = house(expired_cert.write(tmp_path, "a"))
    [worker] = there.workers(1)
    keeper = there.begin(worker)
    worker.enrol()
    keeper.log.wait_for(lambda line: line.startswith("ERROR") and '"rule": "expired"' in line)


# To the end


def test_sigterm_ends_it_in_order_and_signals_of_the_terminal_do_not(
    house: Housed, first: Issued, tmp_path: Path
):
    there = house(first.write(tmp_path, "a"))
    workers = there.workers()
    keeper = there.begin(*workers)
    for worker in workers:
        worker.enrol()
    for ignored in (signal.SIGINT, signal.SIGHUP):
        keeper.process.send_signal(ignored)
    assert there.ask("/-/live")[0] == 200
    keeper.process.send_signal(signal.SIGTERM)
    code, log = keeper.wait_end()
    assert code == 0
    assert not any(line.startswith(("ERROR", "Traceback")) for line in log)


def test_the_death_of_the_supervisor_ends_it(house: Housed, first: Issued, tmp_path: Path):
    keeper = house(first.write(tmp_path, "a")).begin()
    keeper.link.close()
    assert keeper.wait_end()[0] == 0


def test_what_is_no_message_of_the_supervisor_is_logged_and_the_next_one_is_heard(
    house: Housed, first: Issued, tmp_path: Path
):
    there = house(first.write(tmp_path, "a"))
    keeper = there.begin()
    keeper.link.send(b"nonsense")
    [worker] = there.workers(1)
    keeper.join(worker)
    worker.enrol()
    keeper.log.wait_for(lambda line: line.startswith("ERROR bad message from the supervisor"))


# Renewal


def test_renewed_files_are_noticed_served_by_every_worker_and_written_down(
    house: Housed, first: Issued, second: Issued, tmp_path: Path
):
    there = house(first.write(tmp_path, "a"), watch={"poll": "1h"})
    workers = [worker.listen(there.crew.socket()).work() for worker in there.workers()]
    there.begin(*workers, listening=True)
    there.until(lambda: there.is_ready() and there.store.current("a") == 1)
    there.renew(second)
    there.until(lambda: "event" in [each["trigger"] for each in there.audit()])
    assert there.audit()[-1]["result"] == "active"
    assert there.audit()[-1]["workers"] == [
        {"pid": worker.pid, "fingerprints": [second.fingerprint]} for worker in workers
    ]
    assert {worker.fingerprints for worker in workers} == {(second.fingerprint,)}
    assert there.ask("/-/certificates")[1]["certificates"][0]["generation"] == 2
    assert there.store.current("a") == 2


def test_the_supervisor_has_everything_looked_at(
    house: Housed, first: Issued, second: Issued, tmp_path: Path
):
    there = house(first.write(tmp_path, "a"), watch=UNTOLD)
    [worker] = there.workers(1)
    keeper = there.begin(worker.work())
    there.until(there.is_ready)
    there.renew(second)
    packets.send(keeper.link, Reconfigured(time.monotonic(), False, ()))
    worker.wait_for(lambda: len(worker.sets) == 2)
    assert worker.fingerprints == (second.fingerprint,)


@pytest.mark.parametrize("problem", ["", "worker 0 ended with 70"])
def test_new_ticket_keys_are_asked_of_the_supervisor_and_its_answer_is_the_answer(
    house: Housed, first: Issued, tmp_path: Path, problem: str
):
    there = house(first.write(tmp_path, "a"))
    keeper = there.begin()
    with ThreadPoolExecutor() as asking:
        answers = [asking.submit(there.ask, "/-/rotate", "POST") for _ in range(2)]
        assert [keeper.hear(), keeper.hear()] == [Rotate(), Rotate()]
        packets.send(keeper.link, Rotated(time.monotonic(), problem))
        for answer in answers:
            assert answer.result() == (200, {"rotated": not problem, "says": problem})


def test_a_question_is_not_answered_by_what_was_under_way_when_it_was_asked(
    house: Housed, first: Issued, tmp_path: Path
):
    there = house(first.write(tmp_path, "a"))
    keeper = there.begin()
    with ThreadPoolExecutor() as asking:
        before = time.monotonic()
        answer = asking.submit(there.ask, "/-/reconfigure", "POST")
        assert keeper.hear() == Reconfigure()
        packets.send(keeper.link, Reconfigured(before, True, ()))
        packets.send(keeper.link, Reconfigured(time.monotonic(), False, ("routes: unknown",)))
        assert answer.result() == (200, {"changed": False, "problems": ["routes: unknown"]})


@pytest.mark.parametrize("target", ["/-/reconfigure", "/-/rotate"])
def test_whoever_waits_for_a_keeper_that_is_replaced_is_told_to_ask_again(
    house: Housed, first: Issued, tmp_path: Path, target: str
):
    there = house(first.write(tmp_path, "a"))
    keeper = there.begin()
    with ThreadPoolExecutor() as asking:
        answer = asking.submit(there.ask, target, "POST")
        keeper.hear()
        packets.send(keeper.link, Retire(True, 0))
        status, says = answer.result()
    assert (status, says["again"]) == (503, True)


def test_a_worker_that_is_silent_for_ever_keeps_nothing_else_from_working(
    house: Housed, first: Issued, second: Issued, tmp_path: Path
):
    there = house(first.write(tmp_path, "a"), watch=UNTOLD)
    well, mute = there.workers()
    keeper = there.begin(well, mute, PREPARE_PATIENCE=1, COMMIT_PATIENCE=1, REPLACED_PATIENCE=1)
    well.enrol()
    mute.enrol()
    well.work()
    mute.work(mute_at=Prepare)
    there.until(there.is_ready)
    there.renew(second)
    assert there.reload() == "unverified"
    answer = keeper.hear()
    assert isinstance(answer, Replace)
    assert (answer.pid, bool(answer.why)) == (mute.pid, True)
    assert well.fingerprints == (second.fingerprint,)
    assert there.ask("/-/live")[0] == 200
    mute.leave()
    keeper.join(there.crew.hire(171, 1).work())
    there.until(there.is_ready)
    assert there.reload() == "unchanged"


# Death of the keeper


@pytest.mark.parametrize("at", ["told", "prepared", "committed", "serving"])
def test_killed_at_any_step_the_next_keeper_brings_all_to_one_set_and_nobody_back(
    house: Housed, first: Issued, second: Issued, tmp_path: Path, at: str
):
    there = house(first.write(tmp_path, "a"), watch=UNTOLD)
    workers = there.workers()
    ahead, behind = workers
    keeper = there.begin(*workers)
    for worker in workers:
        old = worker.enrol()
    there.until(lambda: there.is_ready() and there.store.current("a") == 1)
    there.renew(second)
    assert there.ask("/-/reload", "POST")[0] == 202
    for worker in workers:
        new = worker.take() if at == "told" or (at, worker) == ("prepared", behind) else worker.prepare()
    if at == "committed":
        assert ahead.hear() == Commit(new)
    elif at == "serving":
        ahead.commit()
    keeper.kill()
    there.begin(*(worker.work() for worker in workers))
    there.until(lambda: there.is_ready() and all(worker.serving == new for worker in workers))
    for worker in workers:
        assert worker.sets[0] == old
        assert set(worker.sets[1:]) == {new}
        assert worker.fingerprints == (second.fingerprint,)
    there.until(lambda: there.store.current("a") == 2)
    kept = there.store.read("a", 2)
    assert kept is not None
    assert (kept.chain, kept.key) == (second.chain_pem, second.key_pem)
    assert there.reload() == "unchanged"


def test_with_broken_files_the_next_keeper_serves_what_was_served_until_they_are_mended(
    house: Housed, first: Issued, second: Issued, tmp_path: Path
):
    there = house(first.write(tmp_path, "a"))
    [worker] = there.workers(1)
    keeper = there.begin(worker)
    served = worker.enrol()
    there.until(lambda: there.is_ready() and there.store.current("a") == 1)
    keeper.kill()
    there.renew(second.with_chain())
    keeper = there.begin(worker.work())
    keeper.log.wait_for(
        lambda line: line.startswith("ERROR the certificate files cannot be served, the last good")
    )
    there.until(there.is_ready)
    [trouble] = there.ask("/-/ready")[1]["degraded"]
    assert trouble.startswith("a: the files cannot be used")
    assert set(worker.sets) == {served}
    there.renew(second)
    worker.wait_for(lambda: worker.fingerprints == (second.fingerprint,))
    there.until(lambda: there.is_ready() and not there.ask("/-/ready")[1]["degraded"])


def test_what_the_next_keeper_takes_over_at_its_start_is_verified_and_written_down_whole(
    house: Housed, first: Issued, second: Issued, tmp_path: Path
):
    there = house(first.write(tmp_path, "a"), watch=UNTOLD)
    workers = [worker.listen(there.crew.socket()).work() for worker in there.workers()]
    keeper = there.begin(*workers, listening=True)
    there.until(lambda: len(there.audit()) == 1)
    keeper.kill()
    there.renew(second)
    there.begin(*workers, listening=True)
    there.until(lambda: len(there.audit()) == 2)
    line = there.audit()[-1]
    assert (line["trigger"], line["result"], line["reason"]) == ("start", "active", "")
    assert set(line["seconds"]) == {"committing", "verifying"}
    assert line["seconds"]["verifying"] > 0
    assert line["workers"] == [
        {"pid": worker.pid, "fingerprints": [second.fingerprint]} for worker in workers
    ]
    for key in ("serial", "spki", "issuer", "not_after", "generation"):
        assert line["old"][key]
        assert line["new"][key]
    assert line["old"]["serial"] != line["new"]["serial"]
    assert (line["old"]["generation"], line["new"]["generation"]) == (1, 2)


def test_a_worker_that_is_mute_at_the_start_is_no_reason_to_wait_for_ever(
    house: Housed, first: Issued, second: Issued, tmp_path: Path
):
    there = house(first.write(tmp_path, "a"), watch=UNTOLD)
    well, mute = there.workers()
    there.begin(well.work(), mute, listening=True, COMMIT_PATIENCE=0.5, PREPARE_PATIENCE=0.5)
    there.until(lambda: len(there.audit()) == 1)
    [line] = there.audit()
    assert (line["trigger"], line["result"]) == ("start", "unverified")
    assert line["reason"] == "not every worker has taken it over yet"
    assert {worker["pid"] for worker in line["workers"]} == {well.pid, mute.pid}


def test_a_renewal_does_not_wait_until_what_was_served_from_the_start_is_verified(
    house: Housed, first: Issued, second: Issued, tmp_path: Path
):
    there = house(first.write(tmp_path, "a"), watch=UNTOLD)
    well, mute = there.workers()
    there.begin(well.work(), mute, listening=True, COMMIT_PATIENCE=3600, PREPARE_PATIENCE=0.5)
    there.until(lambda: well.sets != [])
    there.renew(second)
    assert there.ask("/-/reload", "POST")[0] == 202
    there.until(lambda: well.fingerprints == (second.fingerprint,))
    [line] = there.audit()
    assert (line["trigger"], line["result"]) == ("start", "unverified")
    assert line["reason"] == "a newer one came before every worker was asked"
    assert line["new"]["fingerprint"] == first.fingerprint


def test_questions_wait_while_there_is_no_keeper(house: Housed, first: Issued, tmp_path: Path):
    there = house(first.write(tmp_path, "a"))
    there.begin().kill()
    with ThreadPoolExecutor() as asking:
        answer = asking.submit(there.ask, "/-/live")
        there.begin()
        assert answer.result() == (200, {"live": True})
