"""A real keeper process with two slots, whose workers this test plays."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from botproxy.config.schema import Config, Tls
from botproxy.keeper import channel
from botproxy.keeper.channel import Commit, Hello, Message, Prepare, Prepared, Serving
from botproxy.tls.context import CertificateSet, Handed, listener_context, prove
from tests import certs
from tests.certs import Authority, Issued
from tests.keeper.conftest import Configure

PATIENCE = 30.0
ROOT = Path(__file__).parents[2]


class Keeper:
    """The process, and the ends that supervisor and workers hold."""

    def __init__(self, config: Config, slots: int = 2) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(slots)]
        self.workers = [theirs for _, theirs in pairs]
        for worker in self.workers:
            worker.settimeout(PATIENCE)
        self.ready, ready = os.pipe()
        life, self.life = os.pipe()
        ends = [ours for ours, _ in pairs]
        fds = [ready, life, *(end.fileno() for end in ends)]
        for end in ends:
            end.set_inheritable(True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.keeper.keeper_process", config.model_dump_json(), *map(str, fds)],
            pass_fds=fds,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        os.close(ready)
        os.close(life)
        for end in ends:
            end.close()
        self.admin = Path(config.state_dir or "") / "admin.sock"

    def wait_ready(self) -> None:
        readable, _, _ = select.select([self.ready], [], [], PATIENCE)
        assert readable
        assert os.read(self.ready, 100) == b"ready\n"

    def wait_end(self) -> tuple[int, list[str]]:
        """Exit code and log lines."""
        _, log = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, log.splitlines()

    def ask(self, target: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(PATIENCE)
        connection.sock.connect(str(self.admin))
        connection.request("GET", target)
        response = connection.getresponse()
        body = json.loads(response.read())
        connection.close()
        return response.status, body

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        os.close(self.ready)
        if self.life >= 0:
            os.close(self.life)
        for worker in self.workers:
            worker.close()


@contextmanager
def keeper(config: Config, slots: int = 2) -> Iterator[Keeper]:
    running = Keeper(config, slots)
    try:
        yield running
    finally:
        running.close()


def hear(sock: socket.socket) -> Message:
    message = channel.receive(sock)
    assert message is not None
    return message


def enrol(sock: socket.socket, pid: int) -> CertificateSet:
    """Be a worker until it serves."""
    channel.send(sock, Hello(pid))
    arriving: list[Handed] = []
    while True:
        message = hear(sock)
        assert isinstance(message, Prepare)
        assert (message.pid, message.index) == (pid, len(arriving))
        arriving.append(message.certificate)
        if len(arriving) == message.count:
            break
    loaded = CertificateSet.load(arriving, strict=False)
    prove(loaded, listener_context(Tls()))
    for handed in arriving:
        os.close(handed.fd)
    channel.send(sock, Prepared(pid, message.generation))
    assert hear(sock) == Commit(pid, message.generation)
    fingerprints = tuple(f for served in loaded.each() for f in served.fingerprints)
    channel.send(sock, Serving(pid, message.generation, fingerprints))
    return loaded


def greeting(loaded: CertificateSet, client: ssl.SSLContext, name: str) -> str | None:
    """A verified handshake in memory; the version that was agreed on."""
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


@pytest.fixture
def site(configure: Configure, cert_for: Callable[..., Issued], tmp_path: Path) -> Config:
    entries = [
        cert_for("a.test").write(tmp_path, "ecdsa"),
        cert_for("a.test", "*.b.test", key=certs.rsa_key()).write(tmp_path, "rsa"),
    ]
    return configure(*entries, hosts=("a.test", "x.b.test"))


def test_workers_get_the_certificates_and_readiness_follows(site: Config, ca: Authority):
    with keeper(site) as running:
        running.wait_ready()
        assert running.ask("/-/live") == (200, {"live": True})
        status, report = running.ask("/-/ready")
        assert (status, report["ready"]) == (503, False)
        assert [certificate["names"] for certificate in report["certificates"]] == [
            ["a.test"],
            ["a.test", "*.b.test"],
        ]
        for slot, worker in enumerate(running.workers):
            loaded = enrol(worker, 70 + slot)
            assert greeting(loaded, ca.trust(), "a.test") == "TLSv1.3"
            assert greeting(loaded, ca.trust(), "x.b.test") == "TLSv1.3"
        status, report = running.ask("/-/ready")
        assert (status, report["ready"]) == (200, True)
        assert report["workers"] == [
            {"slot": 0, "pid": 70, "generation": 1},
            {"slot": 1, "pid": 71, "generation": 1},
        ]


def test_the_next_worker_of_a_slot_gets_them_again(site: Config):
    with keeper(site, slots=1) as running:
        running.wait_ready()
        enrol(running.workers[0], 70)
        enrol(running.workers[0], 71)
        assert running.ask("/-/ready")[1]["workers"] == [{"slot": 0, "pid": 71, "generation": 1}]


def test_sigterm_ends_it_in_order(site: Config):
    with keeper(site) as running:
        running.wait_ready()
        assert running.admin.exists()
        for ignored in (signal.SIGINT, signal.SIGHUP):
            running.process.send_signal(ignored)
        assert running.ask("/-/live")[0] == 200
        running.process.send_signal(signal.SIGTERM)
        code, log = running.wait_end()
        assert code == 0
        assert not running.admin.exists()
        assert not any(line.startswith(("ERROR", "Traceback")) for line in log)


def test_the_death_of_the_supervisor_ends_it(site: Config):
    with keeper(site) as running:
        running.wait_ready()
        os.close(running.life)
        running.life = -1
        assert running.wait_end()[0] == 0


def test_wrong_input_is_exit_code_2_with_every_problem_in_the_log_and_no_ready(
    configure: Configure, wrong_key: Issued, cert_for: Callable[..., Issued], tmp_path: Path
):
    missing = cert_for("b.test").write(tmp_path, "missing")
    Path(missing.key).unlink()
    with keeper(configure(wrong_key.write(tmp_path, "wrong"), missing)) as running:
        code, log = running.wait_end()
        assert code == 2
        assert os.read(running.ready, 100) == b""
        errors = [line for line in log if line.startswith("ERROR")]
        assert len(errors) == 2
        assert any("belongs to another certificate" in line for line in errors)
        assert any("does not exist" in line for line in errors)
        assert not any("PRIVATE KEY" in line for line in log)
        assert not running.admin.exists()


def test_an_expired_certificate_is_served_loudly(configure: Configure, expired_cert: Issued, tmp_path: Path):
    with keeper(configure(expired_cert.write(tmp_path)), slots=1) as running:
        running.wait_ready()
        enrol(running.workers[0], 70)
        running.process.send_signal(signal.SIGTERM)
        code, log = running.wait_end()
        assert code == 0
        assert any(line.startswith("ERROR") and '"rule": "expired"' in line for line in log)


def test_a_second_keeper_does_not_take_the_admin_socket_of_a_running_one(site: Config):
    with keeper(site) as first:
        first.wait_ready()
        with keeper(site) as second:
            code, log = second.wait_end()
            assert code == 2
            assert any("another process answers" in line for line in log)
        assert first.ask("/-/live")[0] == 200


def test_without_admin_there_is_no_socket(site: Config):
    with keeper(site.model_copy(update={"admin": "off"})) as running:
        running.wait_ready()
        assert not running.admin.exists()
        enrol(running.workers[0], 70)
