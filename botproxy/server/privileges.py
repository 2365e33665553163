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

from botproxy.errors import ConfigError, Problem

_LIBC = ctypes.CDLL(None, use_errno=True)
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38
UNPRIVILEGED = "nobody"
"""The account of what is only for looking around."""
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

    Raises ConfigError when none is named, it does not exist or is root itself.
    """
    return found_account(user) if os.geteuid() == 0 else None


def found_account(user: str | None) -> Account:
    """The account called `user`; raises as `worker_account` does."""
    if user is None:
        says = "expected the account that serves, for root does not"
        hint = 'for example "user: nobody" in the file, or "--user nobody"; or start as another account'
        raise ConfigError([Problem("", "user", says, hint)])
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        says = f'expected an existing account, found none named "{user}"'
        hint = f"create it: useradd --system --no-create-home {user}"
        raise ConfigError([Problem("", "user", says, hint)]) from None
    if entry.pw_uid == 0:
        says = f'expected an account without root rights, found "{user}"'
        raise ConfigError([Problem("", "user", says, "name another account, such as nobody")])
    return Account(user, entry.pw_uid, entry.pw_gid)


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
    # Those that were given to another account than root, for reading certificates or for binding ports.
    if _LIBC.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()) != 0:
        raise PrivilegeError("the kernel does not let this process give up its capabilities")
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise PrivilegeError("no_new_privs is refused by the kernel")


def close_ranks() -> None:
    """No core dumps, and no memory read by others of the same account: there are keys in it."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # a bot that is our child may have its own again
    if _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise PrivilegeError("the kernel does not let this process be closed to others")


def name_process(name: str) -> None:
    """What `ps` shows: the process name (at most 15 bytes), and the command line in its place."""
    # Not by /proc/self/comm, which belongs to root once a process is closed to others.
    _LIBC.prctl(_PR_SET_NAME, name.encode("ascii"), 0, 0, 0)
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
