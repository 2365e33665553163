"""Giving up root, for good, and the limits a process sets itself.

A worker handles what strangers send; started by root it becomes another account
before it reads the first byte, and proves that it cannot come back.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
from dataclasses import dataclass
from pathlib import Path

_PR_SET_NO_NEW_PRIVS = 38
_DEFAULT_ACCOUNTS = ("botproxy", "nobody")
RESERVED_DESCRIPTORS = 128
"""For listeners, logs, certificates, libraries."""


class PrivilegeError(Exception):
    """Privileges that cannot be given up; serving on would be dangerous."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whom workers run as."""

    name: str
    uid: int
    gid: int


def worker_account(user: str | None) -> Account | None:
    """The account for workers: None when not started as root, and then there is nothing to give up.

    Raises PrivilegeError when `user` does not exist or is root itself.
    """
    if os.geteuid() != 0:
        return None
    for name in (user,) if user else _DEFAULT_ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid == 0:
            raise PrivilegeError(f'user: expected an account without root rights, found "{name}"')
        return Account(name, entry.pw_uid, entry.pw_gid)
    wanted = f'"{user}"' if user else " or ".join(f'"{name}"' for name in _DEFAULT_ACCOUNTS)
    raise PrivilegeError(
        f"user: expected an existing account, found none named {wanted}; "
        "create one: useradd --system --no-create-home botproxy"
    )


def drop(account: Account | None) -> None:
    """Become `account` and forbid every way back. Raises PrivilegeError when that fails."""
    if account is not None:
        os.setgroups([])
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
        for regain in (os.setuid, os.setgid):
            try:
                regain(0)
            except PermissionError:
                continue
            raise PrivilegeError("root rights were given up and could be taken back")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise PrivilegeError("no_new_privs is refused by the kernel")


def name_process(name: str) -> None:
    """What `ps` shows: the process name (at most 15 bytes), and the command line in its place."""
    Path("/proc/self/comm").write_text(name)
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end of proc(5)
    if end - start > len(name):
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, name.encode("ascii"), len(name))


def raise_descriptor_limit() -> int:
    """Raise the soft limit on open files to the hard one; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def connections_within(descriptors: int, upstreams: int) -> int:
    """How many client connections `descriptors` open files allow: each may need one to every bot."""
    return max(1, (descriptors - RESERVED_DESCRIPTORS) // (1 + upstreams))
