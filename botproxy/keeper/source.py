"""The bytes of a configured certificate from disk, or the exact reason why not.

Reads chain, key and password file of one entry, and says of a file that cannot be read
which component of its path stands in the way, whose it is, who asked, and what to do.
Never decides by a file's time, never waits for a pipe's writer, never asks for a
password. What the bytes mean is `tls.pem`'s affair.

Before: the configuration. After: `keeper.load`.
"""

from __future__ import annotations

import errno
import grp
import hashlib
import os
import pwd
import shlex
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botproxy.errors import ConfigError, Problem
from botproxy.keeper.paths import mounted_alone, obstacle, resolved
from botproxy.tls.pem import MAX_SIZE
from botproxy.tls.rules import Finding

if TYPE_CHECKING:
    from botproxy.config import schema


@dataclass(frozen=True, slots=True)
class Pair:
    """What the files of one certificate hold."""

    chain: bytes
    key: bytes
    password: bytes | None
    findings: tuple[Finding, ...]
    """What is odd about the files, whatever they hold."""

    def __repr__(self) -> str:
        return f"Pair(chain={len(self.chain)} bytes)"

    @property
    def digest(self) -> str:
        """SHA-256 of all that was read: what decides whether anything has changed."""
        hashed = hashlib.sha256()
        for part in (self.chain, self.key, self.password or b""):
            hashed.update(len(part).to_bytes(8, "big") + part)
        return hashed.hexdigest()


def read_pair(entry: schema.Certificate, path: str) -> Pair:
    """The files of `entry`; `path` is its place in the configuration, for messages.

    Raises ConfigError with a problem for each file that cannot be read.
    """
    problems: list[Problem] = []
    findings: list[Finding] = []

    def read(field: str, file: str | None, *, secret: bool) -> bytes | None:
        if file is None:
            return None
        try:
            data, status = _read(file)
        except _Unreadable as error:
            problems.append(Problem(where=file, path=f"{path}.{field}", says=error.says, hint=error.fix))
            return None
        if secret and _is_open_to_others(status):
            findings.append(_open_to_others(file, status))
        if mounted_alone(file):
            findings.append(_mounted_alone(file))
        return data

    chain = read("chain", entry.chain, secret=False)
    key = read("key", entry.key, secret=True)
    password = read("password_file", entry.password_file, secret=True)
    if chain is None or key is None or problems:
        raise ConfigError(problems)
    return Pair(chain, key, None if password is None else _line(password), tuple(findings))


def read_password(entry: schema.Certificate) -> bytes | None:
    """The password of `entry` alone; None when there is none to be had."""
    if entry.password_file is None:
        return None
    try:
        return _line(_read(entry.password_file)[0])
    except _Unreadable:
        return None


# Private


def _line(content: bytes) -> bytes:
    return content.removesuffix(b"\n").removesuffix(b"\r")


class _Unreadable(Exception):
    def __init__(self, says: str, fix: str) -> None:
        super().__init__(says)
        self.says = says
        self.fix = fix


_NAME_FILE = "name the PEM file itself (certbot: /etc/letsencrypt/live/NAME/fullchain.pem and privkey.pem)"


def _read(file: str) -> tuple[bytes, os.stat_result]:
    """Content and status of a regular file of at most 1 MiB. Raises _Unreadable, whatever the system says."""
    try:
        return _content(file)
    except OSError as error:
        raise _Unreadable(f"the file cannot be read ({error.strerror})", "check the disk") from None


def _content(file: str) -> tuple[bytes, os.stat_result]:
    try:
        # Without O_NONBLOCK opening a FIFO would wait for its writer.
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _why(file, error) from None
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise _Unreadable("expected a file, found a directory", _NAME_FILE)
        if not stat.S_ISREG(status.st_mode):
            raise _Unreadable("expected a regular file, found a device, pipe or socket", _NAME_FILE)
        with open(fd, "rb", closefd=False) as opened:
            data = opened.read(MAX_SIZE + 1)
    finally:
        os.close(fd)
    if len(data) > MAX_SIZE:
        raise _Unreadable("the file is larger than 1 MiB: no certificate or key is", _NAME_FILE)
    return data, status


def _is_open_to_others(status: os.stat_result) -> bool:
    """Whether anybody else can reach a secret; its group may read it where that is ours."""
    return bool(status.st_mode & (0o037 if status.st_gid in _our_groups() else 0o077))


def _open_to_others(file: str, status: os.stat_result) -> Finding:
    who = "every account of this machine" if status.st_mode & 0o007 else "its group"
    return Finding(
        "open_to_others",
        "warning",
        f'the secret in "{file}" is accessible to {who} ({stat.filemode(status.st_mode)})',
        _for_us_alone(shlex.quote(resolved(file)), status),
    )


def _for_us_alone(quoted: str, status: os.stat_result) -> str:
    """The command after which we can read a secret, and as few others as can be."""
    if os.geteuid() in (0, status.st_uid):
        return f"chmod 600 {quoted}"
    if status.st_gid in _our_groups():
        return f"chmod 640 {quoted}"
    return f"chgrp {_group(os.getegid())} {quoted}; chmod 640 {quoted}"


def _let_us_enter(quoted: str, status: os.stat_result) -> str:
    """The command after which we can pass a directory; an owner has only the owner's bits."""
    if os.geteuid() == status.st_uid:
        return f"chmod u+x {quoted}"
    if status.st_gid in _our_groups():
        return f"chmod g+x {quoted}"
    return f"chgrp {_group(os.getegid())} {quoted}; chmod g+x {quoted}"


def _our_groups() -> set[int]:
    return {os.getegid(), *os.getgroups()}


def _mounted_alone(file: str) -> Finding:
    return Finding(
        "mounted_alone",
        "warning",
        f'"{file}" is mounted as a single file (a bind mount, subPath in Kubernetes): '
        "a renewed file that takes its place outside never appears here",
        "mount the directory that holds it instead",
    )


def _why(file: str, error: OSError) -> _Unreadable:
    """The sentence for a file that could not be opened."""
    if error.errno == errno.ELOOP:
        return _Unreadable("its symbolic links lead in a circle", f"see namei -l {shlex.quote(file)}")
    if error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR):
        return _Unreadable(
            f"the file cannot be opened ({error.strerror})", f"see namei -l {shlex.quote(file)}"
        )
    stopped = obstacle(file)
    if error.errno == errno.ENOENT:
        return _Unreadable(
            f'"{stopped}" does not exist', "correct the path; certbot certificates lists what there is"
        )
    if error.errno == errno.ENOTDIR:
        return _Unreadable(f'"{stopped}" is not a directory', "correct the path")
    return _forbidden(file, stopped)


def _forbidden(file: str, stopped: str) -> _Unreadable:
    try:
        status = os.stat(stopped)
    except OSError:
        return _Unreadable(f'permission denied at "{stopped}"', f"see namei -l {shlex.quote(file)}")
    uid, gid = os.geteuid(), os.getegid()
    owner = f"{stat.filemode(status.st_mode)} {_user(status.st_uid)}:{_group(status.st_gid)}"
    if os.access(stopped, _needed(status.st_mode), effective_ids=True):
        return _Unreadable(
            f'uid {uid} may not open it although the modes allow it ("{stopped}" is {owner})',
            "look for a rule of SELinux, AppArmor or systemd that forbids it",
        )
    if os.path.abspath(stopped).startswith("/etc/letsencrypt/"):
        fix = (
            "start botproxy as root (its workers give up all rights), or let a group in, which certbot keeps "
            "on renewal: chmod 755 /etc/letsencrypt/live /etc/letsencrypt/archive; "
            f"chgrp {_group(gid)} /etc/letsencrypt/archive/*/privkey*.pem; "
            "chmod 640 /etc/letsencrypt/archive/*/privkey*.pem"
        )
    elif stat.S_ISDIR(status.st_mode):
        fix = _let_us_enter(shlex.quote(stopped), status)
    else:
        fix = _for_us_alone(shlex.quote(stopped), status)
    verb = "enter" if stat.S_ISDIR(status.st_mode) else "read"
    return _Unreadable(f'uid {uid} (gid {gid}) may not {verb} "{stopped}" ({owner})', fix)


def _needed(mode: int) -> int:
    return os.X_OK if stat.S_ISDIR(mode) else os.R_OK


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
