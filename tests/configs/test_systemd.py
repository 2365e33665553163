"""The units in configs/systemd: how closed they are, and that botproxy works within them.

systemd itself does not run here. What it would do to the process (account, capability, filter of
system calls, sockets, notifications) is done by `confined`, `systemd-socket-activate` and this file.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from tests.certs import Authority, Issued
from tests.configs import confined
from tests.configs.confined import ACCOUNT, UNITS
from tests.e2e.layouts import Certbot
from tests.e2e.served import served, wait_served
from tests.harness import Bot, Lines, Proxied, free_port, program, status_of
from tests.wire import PATIENCE, get

SERVICE = UNITS / "botproxy.service"
READ_ANYTHING = 1 << 2
"""CAP_DAC_READ_SEARCH."""
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapAmb")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another account")


class Unit(Proxied):
    """botproxy as the unit starts it, from sockets that somebody else opened."""

    def __init__(
        self,
        directory: Path,
        certificate: dict[str, str],
        to: str,
        *,
        notify: Notified | None = None,
        without_capabilities: bool = False,
        activated: bool = False,
        sockets: tuple[socket.socket, socket.socket] | None = None,
        source: Path = UNITS.parents[1],
    ) -> None:
        """`activated`: by systemd-socket-activate, at the first connection; else `sockets` are passed.

        `source`: holds the package.
        """
        state = directory / "state" / "botproxy"
        ports = [each.getsockname()[1] for each in sockets] if sockets else [free_port(), free_port()]
        self.directory = directory
        self.config = {
            "listen": [f"127.0.0.1:{ports[0]}"],
            "plain_listen": [f"127.0.0.1:{ports[1]}"],
            "state_dir": str(state),
        }
        if not state.exists():
            state.mkdir(parents=True, mode=0o700)
            os.chown(state, ACCOUNT, ACCOUNT)
        file = directory / "botproxy.yaml"
        file.write_text(
            yaml.safe_dump(
                {
                    "workers": 2,
                    "certificates": [certificate],
                    "upstreams": {"bot": {"url": to}},
                    "timeouts": {"drain": "2s"},
                }
            )
        )
        file.chmod(0o600)
        inner = shlex.split(confined.settings(SERVICE)["ExecStart"][0])
        inner[0:1] = [sys.executable, "-m", "botproxy"]
        inner[inner.index("--config") + 1] = str(file)
        environment = {"XDG_STATE_HOME": str(state.parent), "PYTHONPATH": str(source)}
        if notify is not None:
            environment |= {"NOTIFY_SOCKET": notify.address, "WATCHDOG_USEC": "1000000"}
        command = confined.command(SERVICE, inner, without_capabilities=without_capabilities)
        passed: tuple[int, ...] = ()
        if activated:
            activator = [program("systemd-socket-activate"), "--fdname=https:http"]
            activator += [f"--listen=127.0.0.1:{port}" for port in ports]
            activator += [f"--setenv={name}={value}" for name, value in environment.items()]
            command = activator + command
        elif sockets is not None:
            passed = (sockets[0].fileno(), sockets[1].fileno())
            move = f'exec 3<&{passed[0]} 4<&{passed[1]}; LISTEN_PID=$$ exec "$@"'
            command = ["bash", "-c", move, "bash", *command]
            environment |= {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "https:http"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            pass_fds=passed,
            cwd=source,
        )
        self.access = Lines(self.process.stdout)
        self.log = Lines(self.process.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        assert not [line for line in self.log.join() if "Traceback" in line], self.log.lines


class Notified:
    """The socket of a service manager that believes the main process only, as NotifyAccess=main says."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory / "notify")
        self.main = 0
        self.believed: list[dict[str, str]] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock.bind(self.address)
        os.chmod(self.address, 0o777)
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def wait_for(self, key: str, value: str | None = None, since: int = 0) -> dict[str, str]:
        """The first message from number `since` on that has `key`."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while True:
                for message in self.believed[since:]:
                    if key in message and value in (None, message[key]):
                        return message
                left = deadline - time.monotonic()
                assert left > 0, f"no {key}; there are: {self.believed}"
                self._changed.wait(left)

    def close(self) -> None:
        # A thread that still waits on a closed number goes on with the next socket of that number.
        self._sock.shutdown(socket.SHUT_RD)
        self._thread.join(PATIENCE)
        self._sock.close()

    def _listen(self) -> None:
        while True:
            data, about, _, _ = self._sock.recvmsg(4096, 256)
            if not data:
                return
            sender = struct.unpack("3i", about[0][2][:12])[0]
            message = dict(line.split("=", 1) for line in data.decode().splitlines())
            with self._changed:
                if sender == self.main or self.main == 0:
                    self.believed.append(message)
                    self.main = int(message.get("MAINPID", sender))
                self._changed.notify_all()


@pytest.fixture
def bot() -> Iterator[Bot]:
    with Bot() as bot:
        yield bot


@pytest.fixture
def issued(ca: Authority) -> Issued:
    return ca.issue("localhost")


@pytest.fixture
def letsencrypt(tmp_path: Path, issued: Issued) -> Certbot:
    """certbot's directories, closed to all but root."""
    layout = Certbot(tmp_path / "letsencrypt" / "live" / "localhost", issued)
    for directory in (layout.directory.parent, layout.directory, layout.archive, tmp_path / "letsencrypt"):
        directory.chmod(0o700)
    return layout


@contextmanager
def two_sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """What the socket units hold."""
    with socket.create_server(("127.0.0.1", 0)) as tls, socket.create_server(("127.0.0.1", 0)) as plain:
        yield tls, plain


def test_its_exposure_is_at_most_one_and_a_half() -> None:
    told = subprocess.run(
        [program("systemd-analyze"), "security", "--offline=true", "--no-pager", "--threshold=15", SERVICE],
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stdout
    found = re.search(r"Overall exposure level for botproxy.service: ([0-9.]+)", told.stdout)
    assert found is not None
    assert float(found[1]) <= 1.5


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    units = [tmp_path / file.name for file in UNITS.iterdir()]
    for unit in units:
        text = (UNITS / unit.name).read_text()
        unit.write_text(text.replace("/opt/botproxy/bin/botproxy", shutil.which("true") or ""))
    told = subprocess.run(
        [program("systemd-analyze"), "verify", "--man=no", *units], capture_output=True, text=True
    )
    complaints = [line for line in told.stderr.splitlines() if str(tmp_path) in line or "botproxy" in line]
    known = [line for line in complaints if line.endswith("ignoring: notify-reload")]
    version = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True)
    assert complaints == known
    # Each unit that names the service has it read again.
    assert bool(known) == (int(version.stdout.split()[1]) < 253)


@needs_root
def test_a_renewal_of_files_that_only_root_may_read_is_served_without_being_told(
    tmp_path: Path, ca: Authority, bot: Bot, letsencrypt: Certbot, issued: Issued
) -> None:
    with two_sockets() as sockets, Unit(tmp_path, letsencrypt.entry, bot.url, sockets=sockets) as front:
        front.wait_ready()
        assert served(front, "localhost", ca.trust()) == issued.leaf
        for _ in range(2):
            renewed = ca.issue("localhost")
            began = time.monotonic()
            letsencrypt.renew(renewed)
            wait_served(front, renewed)
            assert time.monotonic() - began < 5
            assert served(front, "localhost", ca.trust()) == renewed.leaf
        with front.connect(ca.trust()) as client:
            client.send(get("/"))
            assert client.read_message().status == 200


@needs_root
def test_no_process_is_root_and_workers_have_no_capability(
    tmp_path: Path, bot: Bot, letsencrypt: Certbot
) -> None:
    with two_sockets() as sockets, Unit(tmp_path, letsencrypt.entry, bot.url, sockets=sockets) as front:
        front.wait_ready()
        everybody = [front.process.pid, *front.children()]
        assert len(everybody) == 4
        for pid in everybody:
            assert status_of(pid, "Uid") == [str(ACCOUNT)] * 4
            assert status_of(pid, "Groups") == []
            assert status_of(pid, "NoNewPrivs") == ["1"]
            assert status_of(pid, "Seccomp") == ["2"]
            assert int(status_of(pid, "CapBnd")[0], 16) == READ_ANYTHING
        for pid in (front.process.pid, front.keeper):
            assert int(status_of(pid, "CapEff")[0], 16) == READ_ANYTHING
        for pid in front.workers():
            assert [int(status_of(pid, kind)[0], 16) for kind in CAPABILITIES] == [0, 0, 0, 0]


@needs_root
def test_it_is_the_capability_that_opens_the_files(bot: Bot, issued: Issued) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        for parent in Path(sys.executable).resolve().parents:
            if not parent.stat().st_mode & 0o001:
                pytest.skip(
                    f"{parent} is closed, so that Python itself does not start without the capability"
                )
        closed = Certbot(directory / "live" / "localhost", issued)
        closed.directory.parent.chmod(0o700)
        with (
            two_sockets() as sockets,
            Unit(directory, closed.entry, bot.url, sockets=sockets, without_capabilities=True) as front,
        ):
            (directory / "botproxy.yaml").chmod(0o644)
            assert front.wait() == 2
            assert any("privkey.pem" in line for line in front.log.join())


@needs_root
def test_systemd_opens_the_ports_and_the_first_client_starts_it(
    tmp_path: Path, ca: Authority, bot: Bot, letsencrypt: Certbot
) -> None:
    with Unit(tmp_path, letsencrypt.entry, bot.url, activated=True) as front:
        front.log.wait_for(lambda line: line.startswith("Listening on") and line.endswith("4."))
        # It waits in the queue of the socket until botproxy serves.
        with front.connect(ca.trust()) as client:
            client.send(get("/"))
            assert client.read_message().status == 200
        with front.tcp(front.plain_port) as plain:
            plain.sendall(get("/where"))
            assert plain.recv(4096).startswith(b"HTTP/1.1 308 ")


@needs_root
def test_who_comes_during_a_restart_waits_and_is_served(
    tmp_path: Path, ca: Authority, bot: Bot, letsencrypt: Certbot
) -> None:
    with two_sockets() as sockets:
        with Unit(tmp_path, letsencrypt.entry, bot.url, sockets=sockets) as front:
            front.wait_ready()
        with front.tcp() as early, Unit(tmp_path, letsencrypt.entry, bot.url, sockets=sockets):
            client = ca.trust().wrap_socket(early, server_hostname="localhost")
            client.sendall(get("/"))
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
            client.close()


@needs_root
def test_systemd_is_told_of_start_reload_life_upgrade_and_stop(
    tmp_path: Path, ca: Authority, bot: Bot, letsencrypt: Certbot
) -> None:
    manager = Notified(tmp_path)
    try:
        with (
            two_sockets() as sockets,
            Unit(tmp_path, letsencrypt.entry, bot.url, sockets=sockets, notify=manager) as front,
        ):
            assert manager.wait_for("READY")["STATUS"] == "serving with 2 of 2 workers"
            assert manager.main == front.process.pid
            manager.wait_for("WATCHDOG")

            before, seen = time.monotonic_ns() // 1000, len(manager.believed)
            front.process.send_signal(signal.SIGHUP)  # what Type=notify-reload does
            told = manager.wait_for("RELOADING", since=seen)
            assert before <= int(told["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
            manager.wait_for("READY", since=manager.believed.index(told))

            seen = len(manager.believed)
            front.process.send_signal(signal.SIGUSR2)
            successor = int(manager.wait_for("MAINPID", since=seen)["MAINPID"])
            assert successor != front.process.pid
            assert front.wait() == 0
            manager.wait_for("WATCHDOG", since=len(manager.believed))
            with front.connect(ca.trust()) as client:
                client.send(get("/"))
                assert client.read_message().status == 200

            seen = len(manager.believed)
            os.kill(successor, signal.SIGTERM)
            manager.wait_for("STOPPING", since=seen)
            front.log.join()
    finally:
        manager.close()


@needs_root
def test_a_reload_that_finds_a_new_version_ends_when_that_serves(
    tmp_path: Path, bot: Bot, letsencrypt: Certbot
) -> None:
    source = tmp_path / "source"
    shutil.copytree(UNITS.parents[1] / "botproxy", source / "botproxy")
    manager = Notified(tmp_path)
    try:
        with (
            two_sockets() as sockets,
            Unit(
                tmp_path, letsencrypt.entry, bot.url, sockets=sockets, notify=manager, source=source
            ) as front,
        ):
            manager.wait_for("READY")
            version = source / "botproxy" / "__init__.py"
            version.write_text(
                re.sub(r'^__version__ = ".*"$', '__version__ = "99"', version.read_text(), flags=re.M)
            )
            seen = len(manager.believed)
            front.process.send_signal(signal.SIGHUP)
            told = manager.wait_for("RELOADING", since=seen)
            successor = int(manager.wait_for("MAINPID", since=seen)["MAINPID"])
            manager.wait_for("READY", since=manager.believed.index(told))
            assert front.wait() == 0
            os.kill(successor, signal.SIGTERM)
            front.log.join()
    finally:
        manager.close()


def test_what_the_unit_grants_to_a_stop_is_more_than_the_drain() -> None:
    from botproxy.config.schema import Timeouts
    from botproxy.server.crew import GRACE_AFTER_CUT
    from botproxy.server.supervisor import GRACE_AFTER_DRAIN

    keys: dict[str, Any] = confined.settings(SERVICE)
    longest = Timeouts().drain + GRACE_AFTER_DRAIN + GRACE_AFTER_CUT
    assert int(keys["TimeoutStopSec"][0].removesuffix("s")) >= longest
    assert keys["KillMode"] == ["mixed"]
