"""A systemd unit's confinement without systemd: its account, capability, system calls and memory rules.

`command` wraps a command as the unit would start it. Run as a program, this file does the part that
`setpriv` cannot: it loads the filter of system calls and becomes the command.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

UNITS = Path(__file__).parents[2] / "configs" / "systemd"
ACCOUNT = 61234
"""In the range that DynamicUser= takes from; nobody's."""
_PR_SET_MDWE, _REFUSE_EXEC_GAIN = 65, 1
_ACT_ALLOW, _ACT_ERRNO = 0x7FFF0000, 0x00050000
_ALWAYS = ("@default", "execve")
"""systemd adds these to every list of what is allowed."""


def settings(unit: Path) -> dict[str, list[str]]:
    """Every key of a unit with its values, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if (key_value := line.partition("="))[1] and not line.startswith("#"):
            found.setdefault(key_value[0], []).append(key_value[2])
    return found


def allowed_calls(unit: Path) -> set[str]:
    """The names that SystemCallFilter= leaves."""
    allowed: set[str] = set()
    for line in [*_ALWAYS, *settings(unit)["SystemCallFilter"]]:
        names = set().union(*map(_expand, line.removeprefix("~").split()))
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed


def command(unit: Path, inner: Sequence[str], *, without_capabilities: bool = False) -> list[str]:
    """`inner` as `unit` confines it; to be started by root."""
    keys = settings(unit)
    assert keys["AmbientCapabilities"] == keys["CapabilityBoundingSet"]
    assert keys["NoNewPrivileges"] == keys["MemoryDenyWriteExecute"] == keys["DynamicUser"] == ["yes"]
    assert keys["SystemCallErrorNumber"] == ["EPERM"]
    names = [] if without_capabilities else keys["AmbientCapabilities"][0].split()
    capabilities = ",".join(["-all", *("+" + name.removeprefix("CAP_").lower() for name in names)])
    return [
        "setpriv",
        f"--reuid={ACCOUNT}",
        f"--regid={ACCOUNT}",
        "--clear-groups",
        f"--inh-caps={capabilities}",
        f"--ambient-caps={capabilities}",
        f"--bounding-set={capabilities}",
        "--no-new-privs",
        sys.executable,
        __file__,
        keys["UMask"][0],
        ",".join(sorted(allowed_calls(unit))),
        *inner,
    ]


# Private


def _expand(name: str) -> set[str]:
    """A system call, or all of a set of them, as the installed systemd knows it."""
    if not name.startswith("@"):
        return {name}
    told = subprocess.run(
        ["systemd-analyze", "--no-pager", "syscall-filter", name], capture_output=True, text=True, check=True
    ).stdout
    inside = [word for line in told.splitlines()[1:] if (word := line.strip()) and not word.startswith("#")]
    assert inside, told
    return set().union(*map(_expand, inside))


def _confine(allowed: Sequence[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # Kernels before 6.3 do not know it; then the rest is what is tested.
    if libc.prctl(_PR_SET_MDWE, _REFUSE_EXEC_GAIN, 0, 0, 0) != 0 and ctypes.get_errno() != errno.EINVAL:
        raise OSError(ctypes.get_errno(), "prctl")
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ACT_ERRNO | errno.EPERM)))
    for name in allowed:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # else of another architecture
            library.seccomp_rule_add(rules, ctypes.c_uint32(_ACT_ALLOW), number, 0)
    if library.seccomp_load(rules) != 0:
        raise RuntimeError("the filter of system calls cannot be loaded")


if __name__ == "__main__":
    assert re.fullmatch("[0-7]{4}", sys.argv[1])
    os.umask(int(sys.argv[1], 8))
    _confine(sys.argv[2].split(","))
    os.execv(sys.argv[3], sys.argv[3:])
