"""What is promised about the image, each promise with what proves it.

A claim is a function that starts what it needs, raises when the promise is broken, and
says what it saw. `ALL` is the order in which `prove` judges them.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from tests.container import composition
from tests.container.runtime import PATIENCE
from tests.container.scene import ALONE, CERTIFICATES, OWNER, SLOW, Answer, Scene

DOCKER_GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL of `docker stop`."""


def image_says_what_it_is(scene: Scene) -> str:
    config = scene.image.config
    assert config["User"] == "65532:65532"
    assert set(config["ExposedPorts"]) == {"8443/tcp", "8080/tcp"}
    assert config["Healthcheck"]["Test"] == ["CMD", "botproxy", "health"]
    assert (config["Entrypoint"], config["Cmd"]) == (["botproxy"], ["serve"])
    assert config["StopSignal"] == "SIGTERM"
    assert not [each for each in config["Env"] if each.startswith("PIP_")]
    return f"user {config['User']}, health by {' '.join(config['Healthcheck']['Test'][1:])}"


def files_give_no_rights(scene: Scene) -> str:
    root = scene.image.root
    files = 0
    for directory, _, names in os.walk(root):
        for path in (Path(directory, name) for name in names):
            files += 1
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID), f"{path} is set-uid or set-gid"
                assert "security.capability" not in os.listxattr(path), f"{path} has capabilities"
            assert status.st_uid == 0 or not path.is_relative_to(root / "opt"), f"{path} is not root's"
    for name in ("pip", "strip", "gcc"):
        assert not list(root.glob(f"usr/**/bin/{name}*")), f"{name} is in the image"
    return f"{files} files, none set-uid, set-gid or with capabilities, no pip"


def variables_alone_configure_it(scene: Scene) -> str:
    """Read-only, without capabilities, as uid 65532; certificates and challenges are mounted read-only."""
    challenges = scene.directory / "acme/.well-known/acme-challenge"
    challenges.mkdir(parents=True)
    challenges.joinpath("token").write_text("proof")
    running = scene.serve(
        env={
            "BOTPROXY_ACME_WEBROOT": "/acme",
            "BOTPROXY_UPSTREAMS__BOT__URL": "http://127.0.0.1:8000",
            "BOTPROXY_ROUTES__0__HOSTS__0": "bot.example.com",
            "BOTPROXY_ROUTES__0__PATH": "/hook",
            "BOTPROXY_WORKERS": "2",
        },
        mounts={"/acme": scene.directory / "acme"},
    )
    answer = scene.ask("/hook/1", body=b"{}")
    assert answer.status == 200, answer
    assert json.loads(answer.body) == {"path": "/hook/1", "proto": "https"}
    assert scene.ask("/elsewhere").status == 404, "the route of the variables does not count"
    assert scene.ask("/.well-known/acme-challenge/token", port=8080).body == b"proof"
    redirect = scene.ask("/hook", port=8080)
    assert redirect.status in (301, 308), redirect
    assert redirect.headers["Location"] == "https://bot.example.com/hook"
    processes = running.processes()
    assert len(processes) == 4, processes.keys()
    for each in processes.values():
        assert each["Uid"].split() == [str(OWNER)] * 4, each
        assert each["Gid"].split() == [str(OWNER)] * 4, each
        assert {each[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}, each
        assert each["NoNewPrivs"] == "1", each
    for place in ("/", "/etc", "/tmp", "/opt/botproxy", CERTIFICATES, "/acme"):
        assert running.execute("touch", f"{place}/x").returncode != 0, f"{place} can be written"
    return "8443 and 8080 answer, 4 processes of uid 65532 without a capability, nothing but /state writable"


def mounted_file_configures_it(scene: Scene) -> str:
    file = scene.directory / "botproxy.yaml"
    file.write_text(
        f"certificates: [{{chain: {CERTIFICATES}/fullchain.pem, key: {CERTIFICATES}/privkey.pem}}]\n"
        "listen: [':443']\n"
        "headers: {set: {X-From: file}, hsts: {max_age: 1d}}\n"
    )
    scene.start(
        mounts={"/etc/botproxy/botproxy.yaml": file, CERTIFICATES: scene.certificates},
        env={"BOTPROXY_HEADERS__HSTS__MAX_AGE": "2d"},
    ).until_healthy()
    answer = scene.ask("/")
    assert answer.status == 200, answer
    assert answer.headers["X-From"] == "file"
    assert answer.headers["Strict-Transport-Security"] == "max-age=172800", "variables win"
    return "on the image's ports, whatever the file says of listening"


def any_uid_will_do(scene: Scene) -> str:
    """As OpenShift has it (a high uid nobody knows, gid 0), and with a foreign gid."""
    shared = scene.directory / "shared"
    scene.issue(shared)
    for file in (shared, *shared.iterdir()):
        os.chown(file, 0, 0)
    for name in ("fullchain.pem", "privkey.pem"):
        shared.joinpath(name).chmod(0o440)
    volumes = []
    for mode in (0o777, 0o2770):  # an emptyDir, and one with an fsGroup
        volume = scene.directory / f"volume-{mode:o}"
        volume.mkdir()
        volume.chmod(mode)
        volumes.append(volume)
    for writable in ({}, *({"/state": volume} for volume in volumes)):
        running = scene.serve(user="1000670000", mounts={CERTIFICATES: shared}, writable=writable)
        _serves(scene, shared)
        assert {each["Uid"].split()[0] for each in running.processes().values()} == {"1000670000"}
        code, _ = running.stop()
        assert code == 0, running.says()
    own = scene.directory / "own"
    scene.issue(own, 4711)
    running = scene.serve(user="4711:4712", mounts={CERTIFICATES: own})
    _serves(scene, own)
    return "1000670000:0 with a key for gid 0 (own volume, emptyDir 0777 and 2770), 4711:4712"


def renewal_reaches_clients(scene: Scene) -> str:
    scene.serve()
    before = scene.ask("/").certificate
    scene.issue(scene.certificates)
    begun = time.monotonic()
    _until(lambda: scene.ask("/").certificate != before)
    return f"{time.monotonic() - begun:.1f} s after the files in the read-only mount have changed"


def health_says_no(scene: Scene) -> str:
    idle = scene.start(entrypoint=["sleep"], command=["60"])
    assert idle.pid
    assert not idle.healthy(), "nobody serves there"
    running = scene.serve()
    workers = [pid for pid, each in running.processes().items() if each["Name"] == "botproxy-keeper"]
    assert workers
    begun = time.monotonic()
    assert running.healthy()
    return f"1 where nobody serves, 0 where somebody does, in {time.monotonic() - begun:.2f} s"


def process_one_reaps(scene: Scene) -> str:
    running = scene.serve()
    assert running.processes()[1]["Name"] == "botproxy-super"
    running.execute("sh", "-c", "for i in 1 2 3 4 5; do (sleep 2 >/dev/null 2>&1 &) ; done")
    orphans = [pid for pid, each in running.processes().items() if each["Name"] == "sleep"]
    assert len(orphans) == 5, orphans
    assert all(running.processes()[pid]["PPid"] == running.processes()[1]["Pid"] for pid in orphans)
    _until(lambda: not set(orphans) & running.processes().keys())
    return "5 orphans became its children, ended and left no zombie"


def upgrade_keeps_process_one(scene: Scene) -> str:
    running = scene.serve()
    pid, before = running.pid, set(running.processes())
    over = threading.Event()
    failures: list[Exception] = []
    served = [0]
    caller = threading.Thread(target=_go_on_asking, args=(scene, over, failures, served))
    caller.start()
    running.tell(signal.SIGUSR2)
    # Of those who were there process 1 remains.
    _until(lambda: before & running.processes().keys() == {1} and running.healthy())
    over.set()
    caller.join()
    assert not failures, failures[0]
    assert running.pid == pid
    running.execute("sh", "-c", "(sleep 1 >/dev/null 2>&1 &)")
    _until(lambda: all(each["State"][0] != "Z" for each in running.processes().values()))
    _until(lambda: "sleep" not in {each["Name"] for each in running.processes().values()})
    code, took = running.stop()
    assert code == 0, (code, running.says())
    return f"{served[0]} requests meanwhile, none failed; then it reaps, and SIGTERM ends all in {took:.1f} s"


def sigterm_keeps_dockers_time(scene: Scene) -> str:
    running = scene.serve(env={"BOTPROXY_TIMEOUTS__DRAIN": "8s"})
    answers: dict[str, Answer | Exception] = {}
    callers = [threading.Thread(target=_note, args=(scene, path, answers)) for path in ("/slow", "/never")]
    for caller in callers:
        caller.start()
    time.sleep(SLOW / 3)  # both are with the bot
    code, took = running.stop()
    for caller in callers:
        caller.join()
    slow = answers["/slow"]
    assert isinstance(slow, Answer), slow
    assert slow.status == 200
    assert not (isinstance(answers["/never"], Answer) and answers["/never"].status == 200)
    assert code == 0, (code, running.says())
    assert took < DOCKER_GRACE
    idle = scene.serve()
    code, quick = idle.stop()
    assert code == 0, (code, idle.says())
    return f"drain 8s: {took:.1f} s beside a request without end, one of 3 s was answered; idle {quick:.1f} s"


def bot_lives_in_the_same_container(scene: Scene) -> str:
    """configs/container/one.Dockerfile, on a port of loopback that the bot outside must not have."""
    with scene.bot_away():
        running = scene.start(
            scene.one,
            env={**ALONE, "BOTPROXY_TIMEOUTS__DRAIN": "5s"},
            mounts={CERTIFICATES: scene.certificates},
        ).until_healthy()
        assert json.loads(scene.ask("/hook", body=b"12345").body)["bytes"] == 5
        processes = running.processes()
        (bot,) = (pid for pid, each in processes.items() if each["Name"].startswith("python3"))
        assert processes[bot]["PPid"] == processes[1]["Pid"]
        assert processes[bot]["CapEff"] == "0" * 16
        assert running.execute("sh", "-c", f"kill -KILL {bot}").returncode == 0
        assert scene.ask("/hook", body=b"123").status == 200, "a delivery waits for the bot's next start"
        assert bot not in running.processes()
        code, took = running.stop()
        assert code in (0, 143), (code, running.says())
        assert took < DOCKER_GRACE
        # A bot that ends, ends the container with its exit code.
        for command, expected in ((["true"], 0), (["sh", "-c", "sleep 1"], 0), (["/missing"], 127)):
            ends = scene.start(
                scene.one,
                command=["run", "--", *command],
                env=ALONE,
                mounts={CERTIFICATES: scene.certificates},
            )
            assert ends.end()[0] == expected, ends.says()
            ends.remove()
    return (
        f"it is a child of process 1, is started again, and ends with it in {took:.1f} s (exit code {code})"
    )


def byte_code_is_used(scene: Scene) -> str:
    """Times of files survived the copying from stage to stage, or Python would compile at every start."""
    seen = scene.start(
        entrypoint=["/opt/botproxy/bin/python3", "-v", "-c"],
        command=["import botproxy.cli.health, botproxy.cli.serve"],
    )
    assert seen.end()[0] == 0
    lines = seen.says().splitlines()
    compiled = [line for line in lines if line.startswith("# code object from '/")]
    sources = [line for line in compiled if line.rstrip("'").endswith(".py")]
    assert not sources, sources[:3]
    return f"{sum(' matches ' in line for line in lines)} modules, none compiled at the start"


ALL: tuple[tuple[str, Callable[[Scene], str]], ...] = (
    ("the image has a non-root user, ports 8443 and 8080, and a health check", image_says_what_it_is),
    ("no setcap, no set-uid, no installer", files_give_no_rights),
    ("byte code of what is used is in the image", byte_code_is_used),
    ("variables alone configure it: --read-only --cap-drop ALL, certificates read-only",
     variables_alone_configure_it),
    ("a mounted botproxy.yaml configures it", mounted_file_configures_it),
    ("an arbitrary uid (OpenShift)", any_uid_will_do),
    ("a renewal in a read-only mount reaches clients", renewal_reaches_clients),
    ("`botproxy health` is the health check", health_says_no),
    ("process 1 reaps", process_one_reaps),
    ("an upgrade by SIGUSR2 keeps process 1", upgrade_keeps_process_one),
    ("SIGTERM ends within Docker's 10 s when configured so", sigterm_keeps_dockers_time),
    ("one container, one command: `botproxy run -- COMMAND`", bot_lives_in_the_same_container),
    ("the compose file is valid", composition.is_valid),
    ("the compose file's services do what it says", composition.works),
)  # fmt: skip


# Private


def _serves(scene: Scene, certificates: Path) -> None:
    """Its own root signed there."""
    kept, scene.certificates = scene.certificates, certificates
    try:
        assert scene.ask("/").status == 200
    finally:
        scene.certificates = kept


def _until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def _go_on_asking(scene: Scene, over: threading.Event, failures: list[Exception], served: list[int]) -> None:
    while not over.is_set():
        try:
            assert scene.ask("/").status == 200
            served[0] += 1
        except (AssertionError, OSError) as error:
            failures.append(error)


def _note(scene: Scene, path: str, answers: dict[str, Answer | Exception]) -> None:
    try:
        answers[path] = scene.ask(path)
    except (OSError, HTTPException) as error:
        answers[path] = error
