"""The bot as a child: served from the first moment, started again, told to end last, and never root."""

from __future__ import annotations

import json
import os
import pwd
import queue
import re
import resource
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from botproxy.config import schema
from botproxy.server.children import SIGNALS
from tests.harness import Lines, Proxied, free_port, status_of
from tests.wire import PATIENCE, get

ROOT = os.geteuid() == 0
PYTHON = shutil.which("python3", path=os.defpath) or sys.executable
"""For bots: one that every account may execute, where there is one."""
BOT = """
import json, os, resource, signal, socket, sys, threading

desk, port = sys.argv[1], int(sys.argv[2])

def tell(what, **facts):
    "Say what happened, and wait for what to do."
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(desk)
        sock.sendall(json.dumps({"what": what, "pid": os.getpid(), **facts}).encode() + b"\\n")
        return sock.makefile().readline().strip()

def me():
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\\n").split(":\\t", 1) for line in file if ":\\t" in line)
    fds = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            pass  # that of listdir itself
    limits = [resource.getrlimit(kind) for kind in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)]
    return {"fds": fds, "env": dict(os.environ), "status": status, "group": os.getpgrp(), "limits": limits}

def on_term(*_):
    os._exit(int(tell("terminated")))

def serve(sock):
    with sock:
        while data := sock.recv(65536):
            if data.startswith(b"GET /slow"):
                tell("asked")
            body = str(os.getpid()).encode()
            sock.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))

def leave(what, group):
    "A grandchild that outlives its parent."
    if os.fork() == 0:
        if os.fork() == 0:
            if not group:
                os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            tell(what)
        os._exit(0)
    os.wait()

order = tell("started", **me())
while order in ("orphan", "straggler"):
    leave(order, order == "straggler")
    order = tell("again")
if order != "serve":
    os._exit(int(order))
signal.signal(signal.SIGTERM, on_term)
for number in (signal.SIGQUIT, signal.SIGUSR1, signal.SIGWINCH):
    signal.signal(number, lambda number, _: tell("signalled", number=number))
print("to stdout", os.read(0, 11).decode().strip(), flush=True)
print("to stderr", file=sys.stderr, flush=True)
listener = socket.create_server(("127.0.0.1", port), backlog=128)
threading.Thread(target=lambda: tell("listening"), daemon=True).start()
while True:
    sock, _ = listener.accept()
    threading.Thread(target=serve, args=(sock,), daemon=True).start()
"""


class Told:
    """Something that a bot tells, which waits for the answer."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.settimeout(PATIENCE)
        self.facts: dict[str, Any] = json.loads(sock.makefile().readline())
        self.pid = int(self.facts["pid"])

    def answer(self, order: str | int = "") -> None:
        with self._sock:
            self._sock.sendall(f"{order}\n".encode())

    def close(self) -> None:
        self._sock.close()


class Desk:
    """Where bots tell what they do."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "desk.sock"
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(self.path))
        self.path.chmod(0o777)
        self._sock.listen(128)
        self._told: queue.Queue[Told] = queue.Queue()
        self._all: list[Told] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            told = Told(sock)
            self._all.append(told)
            self._told.put(told)

    def next(self, *what: str) -> Told:
        """What a bot tells next, which must be one of `what`."""
        try:
            told = self._told.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"no bot told that it is {what}") from None
        assert told.facts["what"] in what, told.facts
        return told

    @property
    def is_quiet(self) -> bool:
        return self._told.empty()

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join(PATIENCE)
        for told in self._all:
            told.close()


class Run(Proxied):
    """`botproxy run` with a bot that the desk directs."""

    def __init__(
        self,
        config: dict[str, Any],
        directory: Path,
        command: list[str],
        *,
        env: dict[str, str] | None = None,
        user: int | None = None,
        preexec: str = "",
        give: tuple[int, ...] = (),
    ) -> None:
        """`user`: whom botproxy itself runs as. `preexec`: shell commands before it. `give`: descriptors."""
        if ROOT and user is None:
            config.setdefault("user", "nobody")
        self.config = config
        self.directory = directory
        file = directory / "botproxy.yaml"
        file.write_text(yaml.safe_dump(config))
        ours = sys.executable if user is None else PYTHON
        arguments = [ours, "-m", "botproxy", "run", "--config", str(file), "--", *command]
        if preexec:
            arguments = ["sh", "-c", f'{preexec}; exec "$@"', "sh", *arguments]
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
            process_group=0,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            pass_fds=give,
        )
        assert self.process.stdin is not None
        self.process.stdin.write("from stdin\n" * 10)
        self.process.stdin.flush()
        self.access = Lines(self.process.stdout)
        self.log = Lines(self.process.stderr)

    def bot_serves(self, desk: Desk) -> Told:
        """Let the bot serve; what it told when it started."""
        started = desk.next("started")
        started.answer("serve")
        desk.next("listening").answer()
        self.wait_ready()
        return started

    def terminated(self, desk: Desk, code: int = 0) -> int:
        """Tell it to end, and the bot to end with `code`; how botproxy ended."""
        self.terminate()
        desk.next("terminated").answer(code)
        return self.wait()

    def errors(self) -> list[str]:
        return [line for line in self.log.join() if "level=error" in line or "Traceback" in line]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()  # the kernel tells the bot
            self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.log.join()
        self.access.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def desk(open_directory: Path) -> Iterator[Desk]:
    made = Desk(open_directory)
    yield made
    made.close()


@pytest.fixture
def run(open_directory: Path, site: schema.Certificate, desk: Desk) -> Iterator[Any]:
    with ExitStack() as stack:

        def run(command: list[str] | None = None, *, to: int | None = None, **given: Any) -> Run:
            """`command`: by default the bot of this file, on port `to`."""
            port = to or free_port()
            script = open_directory / "bot.py"
            script.write_text(BOT)
            options = {key: given.pop(key) for key in ("env", "user", "preexec", "give") if key in given}
            state = open_directory / "state"
            config = {
                "listen": [f"127.0.0.1:{free_port()}"],
                "plain_listen": [],
                "workers": 1,
                "state_dir": str(state),
                "certificates": [{"chain": site.chain, "key": site.key}],
                "upstreams": {"bot": {"url": f"http://127.0.0.1:{port}"}},
                "timeouts": {"drain": "15s"},
                **given,
            }
            command = command or [PYTHON, str(script), str(desk.path), str(port)]
            return stack.enter_context(Run(config, open_directory, command, **options))

        yield run


def ended(pid: int) -> None:
    """Wait until a process has ended, reaped or not."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], PATIENCE)[0]
    finally:
        os.close(fd)


def until(what: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


# From the first moment


def test_a_bot_that_takes_a_second_to_listen_loses_no_request(run, desk: Desk, trust: ssl.SSLContext):
    front = run()
    started = desk.next("started")
    front.wait_ready()
    with ExitStack() as stack:
        wires = [stack.enter_context(front.connect(trust)) for _ in range(30)]
        for wire in wires:
            wire.send(get())
        assert not wires[0].has_more(within=1.0)
        started.answer("serve")
        desk.next("listening").answer()
        for wire in wires:
            answer = wire.read_message()
            assert (answer.status, answer.body) == (200, str(started.pid).encode())
    assert front.terminated(desk) == 0
    assert front.errors() == []


# The end of the bot


def test_a_bot_that_ends_well_ends_us_well(run, desk: Desk):
    front = run()
    started = desk.next("started")
    front.wait_ready()
    started.answer(0)
    assert front.wait() == 0
    assert front.errors() == []
    assert desk.is_quiet


def test_a_bot_that_fails_is_started_again_later_each_time(run, desk: Desk):
    front = run()
    pids = set()
    for _ in range(4):
        started = desk.next("started")
        pids.add(started.pid)
        started.answer(7)
    assert len(pids) == 4
    desk.next("started").answer(0)
    assert front.wait() == 0
    told = [line for line in front.log.join() if "the bot ended and is started again" in line]
    assert [re.findall(r"exit=(\d+).* in_seconds=([\d.]+)", line) for line in told] == [
        [("7", delay)] for delay in ("0.1", "0.2", "0.4", "0.8")
    ]


def test_a_bot_that_is_killed_is_started_again_and_deliveries_wait_for_it(
    run, desk: Desk, trust: ssl.SSLContext
):
    front = run()
    first = front.bot_serves(desk)
    with front.connect(trust) as wire, front.connect(trust) as late:
        assert wire.request(get()).body == str(first.pid).encode()
        os.kill(first.pid, signal.SIGKILL)
        ended(first.pid)
        late.send(get())
        second = desk.next("started")
        assert not late.has_more(within=0.2)
        second.answer("serve")
        desk.next("listening").answer()
        assert late.read_message().body == str(second.pid).encode()
        assert wire.request(get()).body == str(second.pid).encode()
    assert front.log.wait_for(
        lambda line: "the bot ended and is started again" in line and "exit=137" in line
    )
    assert front.terminated(desk) == 0


def test_what_a_bot_left_in_its_process_group_is_told_to_end(run, desk: Desk):
    front = run()
    desk.next("started").answer("straggler")
    told = [desk.next("straggler", "again") for _ in range(2)]
    straggler, again = sorted(told, key=lambda each: each.facts["what"], reverse=True)
    os.kill(again.pid, signal.SIGKILL)
    ended(straggler.pid)
    desk.next("started").answer(0)
    assert front.wait() == 0


def test_orphans_are_ours_and_are_reaped(run, desk: Desk):
    front = run()
    desk.next("started").answer("orphan")
    told = [desk.next("orphan", "again") for _ in range(2)]
    again, orphan = sorted(told, key=lambda each: each.facts["what"])
    until(lambda: status_of(orphan.pid, "PPid") == [str(front.process.pid)])
    orphan.answer()
    until(lambda: not Path(f"/proc/{orphan.pid}").exists())
    again.answer(0)
    assert front.wait() == 0
    assert front.errors() == []


@pytest.mark.parametrize("name", ["SIGQUIT", "SIGUSR1", "SIGWINCH"])
def test_signals_that_mean_nothing_to_us_reach_the_bot(run, desk: Desk, trust: ssl.SSLContext, name: str):
    front = run()
    bot = front.bot_serves(desk)
    front.process.send_signal(signal.Signals[name])
    told = desk.next("signalled")
    assert (told.pid, told.facts["number"]) == (bot.pid, signal.Signals[name])
    told.answer()
    with front.connect(trust) as wire:
        assert wire.request(get()).body == str(bot.pid).encode()
    assert front.terminated(desk) == 0


def test_a_bot_never_outlives_us(run, desk: Desk):
    front = run()
    bot = front.bot_serves(desk)
    front.process.kill()
    desk.next("terminated").answer()
    ended(bot.pid)


# Commands that cannot be started


def script(directory: Path, text: str, mode: int) -> str:
    file = directory / "command"
    file.write_text(text)
    file.chmod(mode)
    return str(file)


def test_a_command_that_is_not_there_is_127(run):
    front = run(["no-such-bot", "--quick"])
    assert front.wait() == 127
    log = front.log.join()
    assert 'botproxy: error: "no-such-bot": expected a command, found none of this name in PATH' in log
    assert len([line for line in log if "the bot is started" in line]) == 1
    assert not [line for line in log if "Traceback" in line]


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("#!/bin/sh\n", 0o644, "permission denied"),
        ("true\n", 0o755, "exec format error"),
        ("#!/nonexistent/sh\n", 0o755, "its interpreter does not exist"),
    ],
)
def test_a_command_that_cannot_be_executed_is_126(run, open_directory: Path, text: str, mode: int, says: str):
    command = script(open_directory, text, mode)
    front = run([command])
    assert front.wait() == 126
    assert f'botproxy: error: "{command}": {says}' in front.log.join()


def test_directories_of_path_that_the_account_may_not_enter_do_not_matter(run, tmp_path: Path):
    (tmp_path / "closed").mkdir(mode=0)
    front = run(["no-such-bot"], env={"PATH": f"{tmp_path / 'closed'}:{os.environ['PATH']}"})
    assert front.wait() == 127


def test_the_exit_code_of_a_botproxy_that_cannot_start_is_its_own(run, site: schema.Certificate):
    front = run(["sleep", "1000"], certificates=[{"chain": site.chain, "key": "/nonexistent.pem"}])
    assert front.wait() == 2
    assert any("/nonexistent.pem" in line for line in front.log.join())


# Signals


def test_the_bot_is_told_to_end_after_the_last_delivery_is_answered(run, desk: Desk, trust: ssl.SSLContext):
    front = run()
    bot = front.bot_serves(desk)
    with front.connect(trust) as wire:
        wire.send(get("/slow"))
        asked = desk.next("asked")
        front.terminate()
        front.log.wait_for(lambda line: "msg=stopping" in line)
        assert not wire.has_more(within=0.5)
        assert desk.is_quiet  # it was not told yet
        asked.answer()
        answer = wire.read_message()
        assert (answer.status, answer.body) == (200, str(bot.pid).encode())
        desk.next("terminated").answer(3)
    assert front.wait() == 3
    assert front.errors() == []
    assert not [line for line in front.log.join() if "started again" in line]


def test_a_bot_that_does_not_handle_the_signal_ends_us_with_143(run):
    front = run(["sleep", "1000"])
    front.wait_ready()
    front.terminate()
    assert front.wait() == 128 + signal.SIGTERM
    assert front.errors() == []


def test_the_second_signal_cuts_deliveries_and_a_bot_that_does_not_end(
    run, desk: Desk, trust: ssl.SSLContext
):
    front = run()
    front.bot_serves(desk)
    with front.connect(trust) as wire:
        wire.send(get("/slow"))
        desk.next("asked")
        front.terminate()
        front.log.wait_for(lambda line: "msg=stopping" in line)
        front.terminate()
        desk.next("terminated")  # which is never answered
        assert front.wait(10) == 128 + signal.SIGKILL
        assert not wire.read_message().complete or wire.read_message().head == b""


def test_ctrl_c_is_for_us_and_not_for_the_bot(run, desk: Desk, trust: ssl.SSLContext):
    front = run()
    bot = front.bot_serves(desk)
    with front.connect(trust) as wire:
        wire.send(get("/slow"))
        asked = desk.next("asked")
        os.killpg(front.process.pid, signal.SIGINT)  # as a terminal does
        front.log.wait_for(lambda line: "msg=stopping" in line)
        asked.answer()
        assert wire.read_message().body == str(bot.pid).encode()
    desk.next("terminated").answer(0)
    assert front.wait() == 0


def test_a_signal_while_the_bot_is_away_ends_us_at_once(run, desk: Desk):
    front = run()
    front.wait_ready()
    for _ in range(6):
        desk.next("started").answer(7)
    front.log.wait_for(lambda line: "started again" in line and "in_seconds=3.2" in line)
    front.terminate()
    assert front.wait(3.0) == 0
    assert desk.is_quiet


def test_a_reload_keeps_the_bot(run, desk: Desk, trust: ssl.SSLContext):
    front = run()
    bot = front.bot_serves(desk)
    file = front.directory / "botproxy.yaml"
    file.write_text(yaml.safe_dump(front.config | {"headers": {"set": {"X-New": "yes"}}}))
    front.process.send_signal(signal.SIGHUP)
    front.log.wait_for(lambda line: "the new configuration is in use" in line)
    with front.connect(trust) as wire:
        answer = wire.request(get())
    assert (answer.value("x-new"), answer.body) == ("yes", str(bot.pid).encode())
    assert desk.is_quiet
    assert front.terminated(desk) == 0


def test_an_upgrade_beside_the_bot_is_refused(run, desk: Desk, trust: ssl.SSLContext):
    front = run()
    bot = front.bot_serves(desk)
    front.process.send_signal(signal.SIGUSR2)
    front.log.wait_for(lambda line: "refused" in line and "restart both" in line)
    with front.connect(trust) as wire:
        assert wire.request(get()).body == str(bot.pid).encode()
    assert front.terminated(desk) == 0


# What the bot is given


def test_the_bot_has_our_streams_and_environment_and_nothing_else_of_ours(run, desk: Desk):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        os.set_inheritable(other.fileno(), True)
        env = {"BOT_TOKEN": "123:abc", "LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
        front = run(env=env, give=(other.fileno(),))
        facts = front.bot_serves(desk).facts
    streams = {number: os.readlink(f"/proc/{front.process.pid}/fd/{number}") for number in "012"}
    assert facts["fds"] == streams
    assert facts["env"]["BOT_TOKEN"] == "123:abc"
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "BOTPROXY_INHERITED"} & set(facts["env"])
    assert facts["group"] == facts["pid"]
    assert front.access.wait_for(lambda line: line == "to stdout from stdin")
    assert front.log.wait_for(lambda line: line == "to stderr")
    assert front.terminated(desk) == 0


def test_signals_and_limits_of_the_bot_are_what_we_were_given(run, desk: Desk):
    front = run(preexec="ulimit -S -n 512; ulimit -S -c 4")
    facts = front.bot_serves(desk).facts
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert facts["limits"][1] == [512, hard]
    if ROOT:  # others cannot take back what we have given up for ourselves
        assert facts["limits"][0][0] == 4 * 512
    status = facts["status"]
    given = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    # Those that we answer are as for any new program; Python itself ignores the last two.
    ours = sum(1 << number - 1 for number in (*SIGNALS, signal.SIGPIPE, signal.SIGXFSZ))
    assert int(status["SigIgn"], 16) & ~ours == int(given["SigIgn"], 16) & ~ours
    assert int(status["SigBlk"], 16) == int(given["SigBlk"], 16)
    assert front.terminated(desk) == 0


@pytest.mark.skipif(not ROOT, reason="only root becomes another account")
def test_a_bot_of_root_becomes_the_account_of_the_workers(run, desk: Desk):
    front = run()
    facts = front.bot_serves(desk).facts
    nobody = pwd.getpwnam("nobody")
    assert facts["status"]["Uid"].split() == [str(nobody.pw_uid)] * 4
    assert facts["status"]["Gid"].split() == [str(nobody.pw_gid)] * 4
    assert facts["status"]["Groups"].split() == [str(gid) for gid in os.getgrouplist("nobody", nobody.pw_gid)]
    assert int(facts["status"]["CapEff"], 16) == 0
    assert facts["status"]["NoNewPrivs"] == "0"
    assert facts["env"]["HOME"] == nobody.pw_dir
    assert (facts["env"]["USER"], facts["env"]["LOGNAME"]) == ("nobody", "nobody")
    assert front.terminated(desk) == 0


@pytest.mark.skipif(not ROOT, reason="only root becomes another account")
def test_a_botproxy_without_root_starts_its_bot_as_itself(
    run, desk: Desk, open_directory: Path, ca, tmp_path: Path
):
    nobody = pwd.getpwnam("nobody").pw_uid
    env = {"PYTHONPATH": ":".join([str(Path.cwd()), *sys.path])}
    if subprocess.run([PYTHON, "-m", "botproxy", "--version"], env=env, user=nobody, check=False).returncode:
        pytest.skip("no interpreter that another account may execute has what botproxy needs")
    (open_directory / "state").mkdir()
    pair = ca.issue("localhost").write(open_directory)
    for path in (open_directory / "state", Path(pair.chain), Path(pair.key)):
        os.chown(path, nobody, -1)
    front = run(user=nobody, env=env, certificates=[{"chain": pair.chain, "key": pair.key}])
    facts = front.bot_serves(desk).facts
    assert facts["status"]["Uid"].split() == [str(nobody)] * 4
    assert front.terminated(desk, 5) == 5
    assert front.errors() == []
