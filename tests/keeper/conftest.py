"""Fixtures of the keeper's tests: certificates on disk, what is served of them, a machine in trouble."""

from __future__ import annotations

import os
import resource
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from botproxy.config import schema
from botproxy.config.schema import Config
from botproxy.keeper.lineage import Active, Lineage
from botproxy.keeper.source import Pair
from botproxy.tls.context import listener_context
from tests import certs
from tests.certs import NOW, Authority, Issued

Configure = Callable[..., Config]
Mounted = Callable[[Path, Path, str], str]
NOBODY = 65534


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """`configure(entry, ..., hosts=())`: a configuration that keeps its state below `tmp_path`."""

    def make(*entries: schema.Certificate, hosts: tuple[str, ...] = (), **keys: object) -> Config:
        return Config.model_validate(
            {
                "certificates": [entry.model_dump() for entry in entries],
                "routes": [{"hosts": hosts}],
                "state_dir": str(tmp_path / "state"),
                **keys,
            }
        )

    return make


@pytest.fixture
def public(ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """The CA of the tests, whose root is all that this system trusts."""
    assert ca.root is not None
    bundle = tmp_path / "roots.pem"
    bundle.write_bytes(certs.pem(ca.root))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "no-roots"))
    return ca


@pytest.fixture
def listener() -> ssl.SSLContext:
    return listener_context(schema.Tls())


@pytest.fixture
def with_bind_mount() -> Mounted:
    """`with_bind_mount(source, target, code)`: what `code` prints where `source` is mounted over `target`."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount")

    def run(source: Path, target: Path, code: str) -> str:
        script = 'mount --bind "$1" "$2" && exec "$3" -c "$4"'
        arguments = [str(source), str(target), sys.executable, code]
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", *arguments],
            capture_output=True,
            check=True,
            text=True,
            cwd=Path(__file__).parents[2],
        ).stdout.strip()

    return run


@contextmanager
def somebody_else(tmp_path: Path) -> Iterator[int]:
    """Be an account without rights; the way to `tmp_path` itself is made free."""
    if os.geteuid() != 0:
        yield os.geteuid()
        return
    closed = [parent for parent in (tmp_path, *tmp_path.parents) if not parent.stat().st_mode & 0o001]
    for parent in closed:
        parent.chmod(parent.stat().st_mode | 0o001)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield NOBODY
    finally:
        os.seteuid(0)
        os.setegid(0)
        for parent in closed:
            parent.chmod(parent.stat().st_mode & ~0o001)


@contextmanager
def no_room(size: int = 0) -> Iterator[None]:
    """Files of this process end at `size` bytes, and the write that meets it is cut, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def away_at(link: Path, call: int, calls: int) -> Iterator[Callable[[], bool]]:
    """`link` is away while this thread makes its `call`-th call of the system and the `calls` - 1 after it.

    What another program does between two of our calls, at the same moment every time. Yields whether
    that moment has come.
    """
    made, target = 0, os.readlink(link)

    def before(_: FrameType, event: str, called: object) -> None:
        nonlocal made
        if event != "c_call" or getattr(called, "__module__", None) != "posix":
            return
        made += 1
        if made == call:
            os.unlink(link)
        elif made == call + calls:
            os.symlink(target, link)

    sys.setprofile(before)
    try:
        yield lambda: made >= call
    finally:
        sys.setprofile(None)
        if not os.path.lexists(link):
            os.symlink(target, link)


def active(issued: Issued, number: int = 1) -> Active:
    """`issued` as it is served, from files without a password."""
    pair = Pair(issued.chain_pem, issued.key_pem, None, ())
    return Active(issued.certificate, pair.chain, pair.key, pair.digest, number, NOW)


def lineage(issued: Issued, number: int = 1, *, name: str = "site") -> Lineage:
    """`issued` in its whole length; its files need not exist."""
    entry = schema.Certificate(chain="/etc/ssl/site.pem", key="/etc/ssl/site.key")
    return Lineage(0, name, entry, active(issued, number))


def odd_chain(authority: Authority) -> Issued:
    """A certificate under an intermediate that is no CA: the signatures are right, and OpenSSL refuses it."""
    key = certs.ecdsa_key()
    middle = certs.build("No CA", key, issuer=authority.certificate, signer=authority.key)
    return Authority(middle, key, (middle, *authority.above)).issue("a.test")
