"""Two copies of botproxy side by side: this working tree's, and that of the commit before the change.

Which commit that is: the one that is named; else where the branch left the remote's main one, which has been
through the gate itself; else, as on that one or without a remote, the commit that last wrote BASELINE: what
it costs was accepted there. If that is the last commit, the one before it, or the last one itself when
something is uncommitted. Copies lie in directories whose names are equally long and are compiled before they
are used, so that nothing but the code differs. Only botproxy is copied: what is run over it comes from here
in both cases, so that it is the same work.
"""

from __future__ import annotations

import compileall
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "botproxy"
GIT = ("git", "-c", f"safe.directory={ROOT}")
"""CI may run as another account than the one that checked out; the code from there is run all the same."""
MAIN = ("origin/HEAD", "origin/main", "origin/master")
"""Names of the remote's main branch, the first that exists."""
BASELINE = Path("bench/micro/baseline.json")
"""What it cost when it was last accepted, below ROOT."""
ACCEPTED = "Costs"
"""Trailer of a commit message that says which workload may cost more: `Costs: route +5%, because ...`."""


def base_commit(named: str | None) -> str | None:
    """The full name of the commit to compare with, None without one. Raises LookupError for a wrong name."""
    if named is not None:
        found = _commit(named)
        if found is None:
            raise LookupError(f'expected a commit, found "{named}"')
        return found
    head = _commit("HEAD")
    if head is None:
        return None
    left = _left()
    if left not in (None, head):
        return left
    if git("rev-parse", "--is-shallow-repository") != "false":
        return None  # what it does not know may have changed what it costs
    accepted = git("log", "-1", "--format=%H", "--", str(BASELINE))
    if accepted and accepted != head:
        return accepted
    return head if git("status", "--porcelain", "--", PACKAGE) else _commit("HEAD^")


def is_changed(base: str) -> bool:
    """Whether this tree's botproxy differs from that of `base`."""
    changes = (
        git("ls-files", "--others", "--exclude-standard", "--", PACKAGE),
        git("diff", "--name-only", base, "--", PACKAGE),
    )
    return changes != ("", "")


def accepted_since(base: str) -> list[str]:
    """What the commits since `base` say that something may cost."""
    said = git("log", f"--format=%(trailers:key={ACCEPTED},valueonly)", f"{base}..HEAD")
    return [line for line in (said or "").splitlines() if line]


def copy_base(base: str, place: Path) -> Path:
    """The botproxy of `base` in `place`, compiled; what to put on PYTHONPATH."""
    directory = place / "base"
    archive = subprocess.run(
        (*GIT, "archive", base, PACKAGE), cwd=ROOT, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        # Before Python 3.11.4 there is no filter; what git packs is ours.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(directory)
    return _compiled(directory)


def copy_tree(place: Path) -> Path:
    """The same of this working tree, as it is now."""
    directory = place / "tree"
    shutil.copytree(ROOT / PACKAGE, directory / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    return _compiled(directory)


def git(*arguments: str) -> str | None:
    """What git prints; None when it fails, or when there is no git or no repository."""
    try:
        done = subprocess.run((*GIT, *arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# Private


def _left() -> str | None:
    """Where this branch and the remote's main one were the same."""
    main = next((name for name in MAIN if _commit(name) is not None), None)
    return git("merge-base", "HEAD", main) if main is not None else None


def _compiled(directory: Path) -> Path:
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755)  # workers that have given up root import from here
    compileall.compile_dir(directory, quiet=2)
    return directory


def _commit(name: str) -> str | None:
    return git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
