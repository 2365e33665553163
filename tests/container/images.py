"""Builds images without a container engine and without a registry, and unpacks them.

Buildah builds. The base is Debian's own Python, made by mmdebstrap from the machine's apt
sources and slimmed as the official slim images are. pip inside the build is given what pip
is told outside, and the folders that are named there, read-only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = ("buildah", "mmdebstrap", "crun", "tar")
"""Programs, and the Debian packages that have them."""
_SLIM = ("man", "doc", "locale", "info", "lintian", "groff", "linda")
"""Folders of /usr/share that Debian's slim images leave out."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image, unpacked."""

    root: Path
    """Its file system."""
    config: Mapping[str, Any]
    """As Docker writes it: User, Env, Cmd, Healthcheck and so on."""
    bytes: int
    """Of all files, as Docker counts; each link once."""


class Workshop:
    """A place to build images in, which leaves nothing outside of it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._environment = os.environ | {"TMPDIR": str(directory)}

    def base(self, name: str) -> None:
        """A stand-in for the python slim image."""
        archive = self._directory / "base.tar"
        leave_out = [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in _SLIM]
        leave_out.append("--dpkgopt=path-include=/usr/share/doc/*/copyright")
        include = "--include=python3,python3-venv,python3-pip,ca-certificates,usr-is-merged"
        # It made /usr what it is, and brings the whole of Perl, which the slim images do not have.
        without = (
            '--customize-hook=chroot "$1" apt-get --yes -qq autoremove --purge usrmerge "^perl-modules-"'
        )
        how = ("--quiet", "--variant=minbase", include, without, *leave_out)
        self._run(["mmdebstrap", *how, "bookworm", str(archive)])
        container = self._buildah("from", "scratch").strip()
        self._buildah("add", container, str(archive), "/")
        self._buildah("commit", container, name)
        self._buildah("rm", container)
        archive.unlink()

    def build(self, name: str, context: Path, *options: str) -> None:
        """What `docker build -t NAME OPTIONS CONTEXT` would do."""
        settings = self._directory / "pip.conf"
        settings.write_text(_pip_settings())
        around = (f"--volume={settings}:/etc/pip.conf:ro", *_pip_folders(settings.read_text()))
        how = ("--isolation", "chroot", "--network", "host", "--format", "docker")
        self._buildah("build", *how, *around, "-t", name, *options, str(context))

    def unpack(self, name: str) -> Image:
        """The image as it would be pushed: its layers, one over the other."""
        packed = self._directory / "packed.tar"
        packed.unlink(missing_ok=True)
        self._buildah("push", name, f"docker-archive:{packed}")
        parts = self._directory / "parts"
        root = self._directory / re.sub(r"\W", "-", name)
        for directory in (parts, root):
            directory.mkdir()
        self._run(["tar", "-xf", str(packed), "-C", str(parts)])
        packed.unlink()
        (manifest,) = json.loads((parts / "manifest.json").read_text())
        for layer in manifest["Layers"]:
            how = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"]
            self._run(["tar", *how, str(parts / layer), "-C", str(root)])
        config = json.loads((parts / manifest["Config"]).read_text())["config"]
        self._run(["rm", "-r", str(parts)])
        return Image(root, config, sum(_sizes(root)))

    def close(self) -> None:
        """Take down what buildah mounts for itself, so that the directory can be removed."""
        with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
            points = [line.split(" ")[4] for line in mounts]
        for point in reversed(points):
            if Path(point).is_relative_to(self._directory):
                self._run(["umount", point])

    def _buildah(self, *arguments: str) -> str:
        places = (f"--{each}={self._directory / each}" for each in ("root", "runroot"))
        return self._run(["buildah", *places, *arguments])

    def _run(self, command: Sequence[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env=self._environment, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return done.stdout


def remove(directory: Path) -> None:
    """The directory and all that is in it; refused while anything is mounted below it.

    A bind mount of the same file system looks like an ordinary folder to whoever deletes.
    """
    real = directory.resolve()
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        points = [Path(line.split(" ")[4]) for line in mounts]
    if below := [str(point) for point in points if point.is_relative_to(real)]:
        raise RuntimeError(f"{real} is left as it is, for there are mounts in it: {', '.join(below)}")
    shutil.rmtree(real)


def weight(root: Path, *folders: str) -> int:
    """Bytes of all files in these folders of an image."""
    return sum(sum(_sizes(root / folder)) for folder in folders)


# Private


def _sizes(root: Path) -> Iterator[int]:
    seen = set()
    for directory, _, files in os.walk(root):
        for file in files:
            status = os.lstat(os.path.join(directory, file))
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                yield status.st_size


def _pip_settings() -> str:
    """What pip is told here, by files and by variables, as one file."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = dict(re.findall(r"^(?:global|install|user|:env:)\.\.?([\w-]+)='(.*)'$", told, re.MULTILINE))
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in found.items())


def _pip_folders(settings: str) -> Iterator[str]:
    """Options that make the files and folders that are named there visible in a build."""
    named = map(Path, re.findall(r"(?:file://)?(/[^\s'\",]+)", settings))
    # The pages of an index lead to files beside them.
    found = {path.parent if path.name == "simple" else path for path in named if path.exists()}
    yield from (f"--volume={path}:{path}:ro" for path in sorted(found - {Path("/")}))
