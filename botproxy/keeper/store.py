"""Every certificate that was accepted, on disk, and which one is the last good.

    CERTS/NAME/7/{fullchain.pem,privkey.pem,meta.json}   a generation, never changed
    CERTS/NAME/7/password                                what opens its key, if that is encrypted
    CERTS/NAME/7/rolled_back                             a mark: it was served, and given up
    CERTS/NAME/current -> 7                              replaced by rename
    CERTS/NAME/refused.json                              what the files hold and shall not be served

Directories 0700, files 0600. A generation holds the bytes as they were read, the password
among them: whoever renews with a new one, or loses it, must still find the last good
certificate usable. It lies as safe as the keys that need none. A generation is written
aside, synced and renamed into place before the pointer moves, so after a crash at any
moment there is the old one or the new one. Five are kept. Nothing is judged here and no
worker is told.

Before: `keeper.renewal`. After: the disk.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botproxy.tls.pem import MAX_SIZE

KEPT = 5
"""Generations of each certificate that stay on disk."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One accepted certificate, as it lies in the store."""

    number: int
    chain: bytes
    key: bytes = field(repr=False)
    meta: Mapping[str, Any]
    """What `describe` in `keeper.lineage` says of it, and from which files it came."""
    is_rolled_back: bool = False
    """Whether it was given up when it was served last."""
    password: bytes | None = field(default=None, repr=False)
    """What opens the key; None also for generations that were kept before passwords were."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why what the files hold is not served, although it could be read."""

    digest: str
    """Of the files' content."""
    rule: str
    says: str
    fix: str
    since: str
    """ISO 8601, UTC."""
    final: bool
    """Whether only a change of the files, or the operator, ends it; time does not."""


class Store:
    """The generations below one directory. Methods raise OSError when the disk fails."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def directory(self) -> Path:
        return self._directory

    # Reading

    def current(self, name: str) -> int | None:
        """Number of the generation that the pointer names."""
        try:
            target = os.readlink(self._directory / name / "current")
        except OSError:
            return None
        return int(target) if target.isdecimal() else None

    def numbers(self, name: str) -> list[int]:
        """Generations on disk, oldest first."""
        try:
            entries = os.listdir(self._directory / name)
        except OSError:
            return []
        return sorted(int(entry) for entry in entries if entry.isdecimal())

    def read(self, name: str, number: int) -> Generation | None:
        """A generation; None when it is not there, or not whole."""
        directory = self._directory / name / str(number)
        try:
            meta = json.loads(_read(directory / "meta.json"))
            chain, key = _read(directory / "fullchain.pem"), _read(directory / "privkey.pem")
            password = _read(directory / "password") if (directory / "password").exists() else None
        except (OSError, ValueError, RecursionError):
            return None
        is_rolled_back = (directory / "rolled_back").exists()
        if not isinstance(meta, dict):
            return None
        return Generation(number, chain, key, meta, is_rolled_back, password)

    def candidates(self, name: str) -> Iterator[Generation]:
        """What can be served when the files cannot: the current generation, then the others, newest first.

        What was rolled back comes last.
        """
        current = self.current(name)
        others = sorted(self.numbers(name), reverse=True)
        last = []
        for number in dict.fromkeys([current, *others] if current is not None else others):
            if (generation := self.read(name, number)) is None:
                continue
            if generation.is_rolled_back:
                last.append(generation)
            else:
                yield generation
        yield from last

    def refusal(self, name: str) -> Refusal | None:
        """What is remembered of the files' present content."""
        try:
            return Refusal(**json.loads(_read(self._directory / name / "refused.json")))
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    # Writing

    def keep(
        self, name: str, chain: bytes, key: bytes, meta: Mapping[str, Any], password: bytes | None = None
    ) -> int:
        """Write a new generation and point to it; its number. The oldest beyond `KEPT` go."""
        with self._locked(name) as home:
            _sweep(home)
            before = self.current(name)
            number = max(self.numbers(name), default=0) + 1
            aside = home / f".new-{os.getpid()}"
            try:
                aside.mkdir(mode=0o700)
                _write(aside / "fullchain.pem", chain)
                _write(aside / "privkey.pem", key)
                if password is not None:
                    _write(aside / "password", password)
                _write(aside / "meta.json", json.dumps({"generation": number, **meta}, indent=2).encode())
                _sync(aside)
                os.rename(aside, home / str(number))
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
            _sync(home)
            try:
                _point(home, number)
            except BaseException:
                if self.current(name) != number:
                    shutil.rmtree(home / str(number), ignore_errors=True)
                raise
            # The one that was current is the way back, and takes the place of an older one.
            there = self.numbers(name)
            others = [old for old in there if old not in (number, before)]
            room = KEPT - (len(there) - len(others))
            for old in others[:-room]:
                shutil.rmtree(home / str(old), ignore_errors=True)
            return number

    def add_password(self, name: str, number: int, password: bytes) -> None:
        """Keep `password` with a generation that was kept without one."""
        with self._locked(name) as home:
            generation = home / str(number)
            if not generation.is_dir() or os.path.lexists(generation / "password"):
                return
            _write(generation / ".password", password)
            os.rename(generation / ".password", generation / "password")
            _sync(generation)

    def point(self, name: str, number: int) -> None:
        """Make an older generation the last good one."""
        with self._locked(name) as home:
            (home / str(number) / "rolled_back").unlink(missing_ok=True)
            _point(home, number)

    def mark_rolled_back(self, name: str, number: int) -> None:
        """Remember that a generation was given up; nothing when it is not there."""
        with self._locked(name) as home:
            if (home / str(number)).is_dir():
                _write(home / str(number) / "rolled_back", b"")
                _sync(home / str(number))

    def forget_others(self, name: str, kept: int) -> None:
        """Remove every generation but `kept` and the one that a rollout has just made current.

        With 0 none is kept. What cannot be removed does not save the others; then OSError is raised.
        """
        with self._locked(name) as home:
            stays = {kept, self.current(name)} if kept else set()
            failed: OSError | None = None
            for entry in os.listdir(home):
                if entry.startswith(".new-") or (entry.isdecimal() and int(entry) not in stays):
                    try:
                        shutil.rmtree(home / entry)
                    except OSError as error:
                        failed = error
            _sync(home)
        if failed is not None:
            raise failed

    def refuse(self, name: str, refusal: Refusal) -> None:
        """Remember over a restart that the files' content shall not be served."""
        with self._locked(name) as home:
            fields = {each: getattr(refusal, each) for each in Refusal.__dataclass_fields__}
            _write(home / ".refused", json.dumps(fields, indent=2).encode())
            os.rename(home / ".refused", home / "refused.json")
            _sync(home)

    def forget_refusal(self, name: str) -> None:
        (self._directory / name / "refused.json").unlink(missing_ok=True)

    @contextmanager
    def _locked(self, name: str) -> Iterator[Path]:
        """The directory of `name`, for one writer at a time: an old botproxy may still be ending."""
        home = self._directory / name
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield home
        finally:
            os.close(fd)


# Private


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError("no regular file")
        return file.read(MAX_SIZE)


def _write(path: Path, data: bytes) -> None:
    """The whole file on disk, 0600, or OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _point(home: Path, number: int) -> None:
    aside = home / ".current"
    aside.unlink(missing_ok=True)
    aside.symlink_to(str(number))
    os.rename(aside, home / "current")
    _sync(home)


def _sweep(home: Path) -> None:
    """Remove what a crash left behind."""
    for left in home.glob(".new-*"):
        shutil.rmtree(left, ignore_errors=True)
