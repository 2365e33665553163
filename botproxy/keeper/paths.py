"""The way of the file system to a file: every component, through every symbolic link.

What a name means is decided in every directory on the way. `keeper.watch` watches them;
`keeper.source` says which one stands in the way. Others change the links meanwhile, so what was
there in one call may be gone in the next: that is no error here, the way ends there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

_LONGEST = 256
"""Components followed; the kernel has told a circle long before."""


def steps(file: str) -> Iterator[tuple[str, str]]:
    """(directory, entry in it) for each component on the way to `file`, from the root on.

    Links are followed. The last step is the file, or what is missing or cannot be seen on the way to it.
    """
    for directory, entry, _ in _walk(file):
        yield directory, entry


def deciding_directories(file: str) -> set[str]:
    """The directories in which a changed entry can change what `file` is: those on the way to it.

    Where the way is broken, up to the nearest that exists. A plain directory is no reason to look at what
    is written beside it where everybody writes, as in /tmp: only its owner can put another in its place.
    """
    found = set()
    last = "/"
    for directory, _, is_link in _walk(file):
        if not os.path.isdir(directory):
            break
        last = directory
        if is_link or not _is_everybodys(directory):
            found.add(directory)
    return found | {last}


def obstacle(file: str) -> str:
    """The first component on the way to `file` that is missing or cannot be passed; else the file's own."""
    entry = "/"
    for directory, entry in steps(file):
        if not os.access(directory, os.X_OK, effective_ids=True) or not os.path.isdir(directory):
            return directory
        if not os.path.lexists(entry):
            return entry
    return entry


def resolved(file: str) -> str:
    """`file` without links; as it is where they change at this moment."""
    try:
        return os.path.realpath(file)
    except OSError:  # it looks whether there is a link, then reads it
        return file


def mounted_alone(file: str) -> bool:
    """Whether `file` itself is a mount point, so that a new file in its old place never appears here."""
    real = resolved(file)
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            points = {line.split(" ")[4] for line in mounts}
    except OSError:
        return False
    # mountinfo writes space, tab, line feed and backslash in octal (proc(5)).
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in real)
    return escaped in points


# Private


def _is_everybodys(directory: str) -> bool:
    """Whether everybody may make entries there and nobody may touch those of others."""
    try:
        mode = os.stat(directory).st_mode
    except OSError:
        return False
    return bool(mode & stat.S_ISVTX and mode & stat.S_IWOTH)


def _walk(file: str) -> Iterator[tuple[str, str, bool]]:
    """The steps, each with whether it is a link."""
    directory = "/"
    # Not abspath, which takes `..` for the parent of a link's name; the kernel goes up where it leads.
    whole = file if file.startswith("/") else f"{os.getcwd()}/{file}"
    ahead = [part for part in whole.split("/") if part not in ("", ".")]
    for _ in range(_LONGEST):
        if not ahead:
            return
        name = ahead.pop(0)
        if name == "..":  # of a link: the parent of where it leads
            directory = os.path.dirname(directory)
            continue
        entry = os.path.join(directory, name)
        try:
            target = os.readlink(entry)
        except OSError as error:
            yield directory, entry, False
            if error.errno != errno.EINVAL:
                return  # nothing, or nothing that may be seen: the way ends here
            directory = entry  # no link
            continue
        yield directory, entry, True
        directory = "/" if target.startswith("/") else directory
        ahead = [part for part in target.split("/") if part not in ("", ".")] + ahead
