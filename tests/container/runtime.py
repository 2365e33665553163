"""Runs an image as `docker run --read-only --cap-drop ALL --security-opt no-new-privileges` would.

crun is the runtime, so that namespaces, capabilities, read-only mounts and process 1 are
real. Only the network is the caller's, who moves into an empty one first: there ports
below 1024 are closed to ordinary users, and nobody else's are in the way.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.container.images import Image, remove

PATIENCE = 20.0
"""Seconds after which something that has not happened does not happen."""
_CLONE_NEWNS, _CLONE_NEWNET = 0x20000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def leave() -> None:
    """Into a network with a loopback of its own and nothing else, and mounts that nobody else sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "this needs root")
    with socket.socket() as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    for command in (
        ("mount", "--make-rprivate", "/"),
        # crun does not start where both versions of control groups are mounted; we use neither.
        ("mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"),
    ):
        subprocess.run(command, check=True)


@dataclass(frozen=True, slots=True)
class Run:
    """What stands behind `docker run`."""

    image: Image
    command: Sequence[str] | None = None
    """Instead of the image's CMD."""
    entrypoint: Sequence[str] | None = None
    user: str | None = None
    """`uid` or `uid:gid`; as Docker has it, gid 0 where only a uid is given and nobody has it."""
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[str, Path] = field(default_factory=dict)
    """Read-only, by their place in the container."""
    writable: Mapping[str, Path] = field(default_factory=dict)
    tmpfs: Sequence[str] = ()


class Container:
    """A running one."""

    def __init__(self, run: Run, directory: Path) -> None:
        """`directory`, which must not exist, becomes its bundle and holds what it prints."""
        self.name = directory.name
        self.log = directory / "log"
        self._state = directory.parent / "crun"
        self._run = run
        uid, _, gid = (run.user or run.image.config["User"]).partition(":")
        self._uid, self._gid = int(uid), int(gid or 0)
        self._volumes = directory / "volumes"
        self._volumes.mkdir(parents=True)
        directory.joinpath("config.json").write_text(json.dumps(self._config()))
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                [*self._crun, "run", "--bundle", str(directory), self.name],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    # Asking

    @property
    def pid(self) -> int:
        """Of its process 1, as we see it."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            done = subprocess.run(
                [*self._crun, "state", self.name], capture_output=True, text=True, check=False
            )
            if done.returncode == 0 and (pid := int(json.loads(done.stdout)["pid"])) > 0:
                return pid
            time.sleep(0.05)
        raise AssertionError(f"{self.name} is not running: {self.says()}")

    def says(self) -> str:
        return self.log.read_text(errors="replace")

    def processes(self) -> dict[int, dict[str, str]]:
        """/proc/PID/status of everybody in it, by their ids in the container."""
        everybody = {}
        for entry in Path("/proc").iterdir():
            try:
                lines = (entry / "status").read_text().splitlines() if entry.name.isdecimal() else ()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
            status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
            if "Pid" in status:
                everybody[int(status["Pid"])] = status
        inside = {self.pid}
        while more := {pid for pid, each in everybody.items() if int(each["PPid"]) in inside} - inside:
            inside |= more
        known = [everybody[pid] for pid in inside if pid in everybody]
        return {int(each["NSpid"].split()[-1]): each for each in known}

    # Acting

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`docker exec`, with the rights and variables of the container."""
        user = f"--user={self._uid}:{self._gid}"  # root, unless it is told
        whole = [*self._crun, "exec", user, *_told("--env", self._environment()), self.name, *command]
        return subprocess.run(whole, capture_output=True, text=True, timeout=PATIENCE, check=False)

    def healthy(self) -> bool:
        """One run of the image's own HEALTHCHECK."""
        kind, *command = self._run.image.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.execute(*command).returncode == 0

    def until_healthy(self) -> Container:
        deadline = time.monotonic() + PATIENCE
        while not (self._process.poll() is None and self.pid and self.healthy()):
            assert self._process.poll() is None, f"{self.name} ended: {self.says()}"
            assert time.monotonic() < deadline, f"{self.name} is not healthy: {self.says()}"
            time.sleep(0.2)
        return self

    def tell(self, number: signal.Signals) -> None:
        """`docker kill --signal`."""
        os.kill(self.pid, number)

    def end(self, patience: float = PATIENCE) -> tuple[int | None, float]:
        """The exit code, None if it was still there after `patience` seconds, and the seconds it took."""
        begun = time.monotonic()
        try:
            code: int | None = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            code = None
        return code, time.monotonic() - begun

    def stop(self) -> tuple[int | None, float]:
        """`docker stop`: SIGTERM, and after 10 s None, when Docker would kill."""
        self.tell(signal.SIGTERM)
        return self.end(10.0)

    def remove(self) -> None:
        subprocess.run([*self._crun, "delete", "--force", self.name], capture_output=True, check=False)
        self._process.wait(PATIENCE)
        if self._volumes.exists():
            remove(self._volumes)

    # Private

    @property
    def _crun(self) -> list[str]:
        return ["crun", "--cgroup-manager=disabled", f"--root={self._state}"]

    def _environment(self) -> dict[str, str]:
        image = dict(each.split("=", 1) for each in self._run.image.config["Env"])
        return {"HOME": "/", **image, **self._run.env}

    def _config(self) -> dict[str, Any]:
        """The bundle's config.json, from Docker's defaults made stricter."""
        config, run = self._run.image.config, self._run
        entrypoint = config["Entrypoint"] if run.entrypoint is None else run.entrypoint
        command = (config.get("Cmd") or []) if run.command is None else run.command
        return {
            "ociVersion": "1.0.0",
            "process": {
                "user": {"uid": self._uid, "gid": self._gid},
                "args": [*entrypoint, *command],
                "env": [f"{name}={value}" for name, value in self._environment().items()],
                "cwd": config.get("WorkingDir") or "/",
                "capabilities": {},
                "noNewPrivileges": True,
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 1024}],
            },
            "root": {"path": str(run.image.root), "readonly": True},
            "hostname": "container",
            "mounts": list(self._mounts()),
            "linux": {
                "namespaces": [{"type": each} for each in ("pid", "ipc", "uts", "mount")],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        }

    def _mounts(self) -> list[dict[str, Any]]:
        closed = ["nosuid", "noexec", "nodev"]
        found: list[dict[str, Any]] = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*closed, "mode=1777"]},
            {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["bind", "ro", *closed]},
        ]
        for place in self._run.tmpfs:
            options = [*closed, "mode=1777"]
            found.append({"destination": place, "type": "tmpfs", "source": "tmpfs", "options": options})
        given = {**self._run.mounts, **self._run.writable}
        for place in self._run.image.config.get("Volumes") or {}:
            if place not in (*given, *self._run.tmpfs):
                given[place] = self._volume(place)
        for place, source in given.items():
            mode = "ro" if place in self._run.mounts else "rw"
            options = ["rbind", "nosuid", "nodev", mode]
            found.append({"destination": place, "type": "bind", "source": str(source), "options": options})
        return found

    def _volume(self, place: str) -> Path:
        """An anonymous volume: as Docker makes it, with owner and mode of what the image has there."""
        status = os.stat(self._run.image.root / place.lstrip("/"))
        volume = self._volumes / place.replace("/", "-")
        volume.mkdir()
        os.chown(volume, status.st_uid, status.st_gid)
        os.chmod(volume, status.st_mode & 0o7777)
        return volume


def _told(option: str, variables: Mapping[str, str]) -> list[str]:
    return [f"{option}={name}={value}" for name, value in variables.items()]
