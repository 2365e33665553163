"""Certificate files as they lie on real machines, and how each kind of program renews them.

A layout writes a first certificate when it is made, and another at each `renew`, with
exactly the steps of the program it stands for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.certs import Issued


class Layout:
    """Chain and key in one directory; subclasses say how they change."""

    def __init__(self, directory: Path, issued: Issued) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self.chain, self.key = directory / "fullchain.pem", directory / "privkey.pem"
        self.begin(issued)

    @property
    def entry(self) -> dict[str, str]:
        """For `certificates` of the configuration."""
        return {"chain": str(self.chain), "key": str(self.key), "name": self.directory.name}

    def begin(self, issued: Issued) -> None:
        put(self.chain, issued.chain_pem)
        put(self.key, issued.key_pem)

    def renew(self, issued: Issued) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Take back what the file system does not forget by itself."""


class InPlace(Layout):
    """`cp new.pem site.pem`."""

    def renew(self, issued: Issued) -> None:
        put(self.key, issued.key_pem)
        put(self.chain, issued.chain_pem)


class RenameOver(Layout):
    """`mv site.pem.new site.pem`, as careful programs do."""

    def renew(self, issued: Issued) -> None:
        for file, data in ((self.chain, issued.chain_pem), (self.key, issued.key_pem)):
            put(file.with_suffix(".tmp"), data)
            os.rename(file.with_suffix(".tmp"), file)


class RemoveAndCreate(Layout):
    """`rm site.pem; cp new.pem site.pem`."""

    def renew(self, issued: Issued) -> None:
        for file, data in ((self.chain, issued.chain_pem), (self.key, issued.key_pem)):
            file.unlink()
            put(file, data)


class OldTime(Layout):
    """`cp -p` of a file that is older than the one it replaces."""

    def renew(self, issued: Issued) -> None:
        for file, data in ((self.key, issued.key_pem), (self.chain, issued.chain_pem)):
            put(file, data)
            os.utime(file, (1_000_000_000, 1_000_000_000))


class Certbot(Layout):
    """certbot's `live/` with links into `archive/`: four files written, then each link removed and made."""

    def begin(self, issued: Issued) -> None:
        self.number = 0
        self.archive = self.directory.parent / f"archive-{self.directory.name}"
        self.archive.mkdir()
        self.renew(issued)

    def renew(self, issued: Issued) -> None:
        self.number += 1
        contents = {
            "cert": issued.chain_pem[: issued.chain_pem.index(b"-----END") + 26],
            "privkey": issued.key_pem,
            "chain": issued.chain_pem,
            "fullchain": issued.chain_pem,
        }
        for name, data in contents.items():
            put(self.archive / f"{name}{self.number}.pem", data)
        for name in contents:
            link = self.directory / f"{name}.pem"
            link.unlink(missing_ok=True)
            link.symlink_to(f"../{self.archive.name}/{name}{self.number}.pem")


class Kubernetes(Layout):
    """A mounted Secret: files are links through `..data`, which is replaced by a rename."""

    def begin(self, issued: Issued) -> None:
        self.number = 0
        self._data(issued)
        self.chain, self.key = self.directory / "tls.crt", self.directory / "tls.key"
        for name in ("tls.crt", "tls.key"):
            (self.directory / name).symlink_to(f"..data/{name}")

    def renew(self, issued: Issued) -> None:
        before = (self.directory / "..data").resolve()
        self._data(issued)
        shutil.rmtree(before)

    def _data(self, issued: Issued) -> None:
        self.number += 1
        generation = self.directory / f"..2026_11_{self.number:02}"
        generation.mkdir()
        put(generation / "tls.crt", issued.chain_pem)
        put(generation / "tls.key", issued.key_pem)
        (self.directory / "..data_tmp").symlink_to(generation.name)
        os.rename(self.directory / "..data_tmp", self.directory / "..data")


class DirectoryLink(Layout):
    """`current -> v7`, replaced by a rename."""

    def begin(self, issued: Issued) -> None:
        self.number = 0
        self.renew(issued)
        current = self.directory / "current"
        self.chain, self.key = current / "fullchain.pem", current / "privkey.pem"

    def renew(self, issued: Issued) -> None:
        self.number += 1
        version = self.directory / f"v{self.number}"
        version.mkdir()
        put(version / "fullchain.pem", issued.chain_pem)
        put(version / "privkey.pem", issued.key_pem)
        (self.directory / "next").symlink_to(version.name)
        os.rename(self.directory / "next", self.directory / "current")


class DirectoryAnew(Layout):
    """The whole directory removed and made again."""

    def renew(self, issued: Issued) -> None:
        shutil.rmtree(self.directory)
        self.directory.mkdir()
        self.begin(issued)


class DirectorySwapped(Layout):
    """The directory renamed away, another one renamed into its place."""

    def renew(self, issued: Issued) -> None:
        aside, old = self.directory.with_suffix(".next"), self.directory.with_suffix(".old")
        shutil.rmtree(old, ignore_errors=True)
        aside.mkdir()
        put(aside / "fullchain.pem", issued.chain_pem)
        put(aside / "privkey.pem", issued.key_pem)
        os.rename(self.directory, old)
        os.rename(aside, self.directory)


class DirectoryAboveSwapped(Layout):
    """The same one directory higher: the one that holds the files keeps its name in the other."""

    def begin(self, issued: Issued) -> None:
        self.chain, self.key = (self.directory / "tls" / file.name for file in (self.chain, self.key))
        self._write(self.directory, issued)

    def renew(self, issued: Issued) -> None:
        aside, old = self.directory.with_suffix(".next"), self.directory.with_suffix(".old")
        shutil.rmtree(old, ignore_errors=True)
        self._write(aside, issued)
        os.rename(self.directory, old)
        os.rename(aside, self.directory)

    def _write(self, directory: Path, issued: Issued) -> None:
        (directory / "tls").mkdir(parents=True)
        put(directory / "tls" / self.chain.name, issued.chain_pem)
        put(directory / "tls" / self.key.name, issued.key_pem)


class MountedAlone(Layout):
    """Single files mounted where they are read, as container engines do; written in place outside."""

    def begin(self, issued: Issued) -> None:
        self.outside = self.directory.parent / f"outside-{self.directory.name}"
        self.outside.mkdir()
        for file, data in ((self.chain, issued.chain_pem), (self.key, issued.key_pem)):
            put(self.outside / file.name, data)
            file.touch()
            subprocess.run(["mount", "--bind", self.outside / file.name, file], check=True)

    def renew(self, issued: Issued) -> None:
        put(self.outside / self.key.name, issued.key_pem)
        put(self.outside / self.chain.name, issued.chain_pem)

    def end(self) -> None:
        for file in (self.chain, self.key):
            subprocess.run(["umount", file], check=True)


def put(file: Path, data: bytes) -> None:
    """Write `data` into `file` as it is, readable by its owner alone when it is new."""
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
        opened.write(data)
