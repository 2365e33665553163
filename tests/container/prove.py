"""Builds the image, runs it, and proves what is promised about it: a line for each claim.

    apt install python3 buildah mmdebstrap crun      # and, for the compose file: certbot pebble
    #                                                  python3-yaml docker-compose
    python3 -m tests.container.prove                 # as root, in the project's directory

No container engine and no registry is needed: `images` builds, `runtime` runs. Exit code 0
when every claim holds, 1 when one does not, 2 when a program is missing. Everything it
makes lies in one directory under /var/tmp, which it removes. `--keep DIRECTORY` keeps the
images there, and takes them from there the next time.
"""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.container import claims, runtime
from tests.container.images import PACKAGES, Image, Workshop, remove, weight
from tests.container.scene import Scene

ROOT = Path(__file__).parents[2]
LIMIT = 150_000_000
"""Bytes of the image."""
ALLOWANCE = 36_000_000
"""Bytes that botproxy may add to what the base brings of Debian and Python. The official slim images have
some 120 MB, less what the Dockerfile removes of them."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", type=Path, help="a directory for the images, used again the next time")
    keep: Path | None = parser.parse_args().keep
    if missing := [name for name in PACKAGES if shutil.which(name) is None]:
        print(f"missing: apt install {' '.join(missing)}")
        return 2
    if os.geteuid() != 0:
        print("this needs root, for namespaces and other users' files")
        return 2
    directory = keep or Path(tempfile.mkdtemp(prefix="botproxy-container-", dir="/var/tmp"))
    directory.mkdir(exist_ok=True)
    try:
        return _proved(directory)
    finally:
        if keep is None:
            remove(directory)


def _proved(directory: Path) -> int:
    made = directory / "images.pickle"
    if made.exists():
        base, image, one = pickle.loads(made.read_bytes())
        print(f"images of an earlier run, from {directory}")
    else:
        base, image, one = _build(directory)
        made.write_bytes(pickle.dumps((base, image, one)))
    failures = 0
    failures += _judge("the image is under 150 MB", lambda: _size(base, image))
    runtime.leave()
    scene = Scene(Path(tempfile.mkdtemp(prefix="run-", dir=directory)), image, one)
    try:
        scene.prepare()
        for says, claim in claims.ALL:
            failures += _judge(says, lambda claim=claim: claim(scene))  # type: ignore[misc]
            scene.tidy()
    finally:
        scene.close()
    print(f"{failures} of {len(claims.ALL) + 1} claims failed" if failures else "every claim holds")
    return 1 if failures else 0


def _build(directory: Path) -> tuple[Image, Image, Image]:
    begun = time.monotonic()
    shop = Workshop(directory)
    try:
        shop.base("localhost/python-slim")
        shop.build("localhost/botproxy", ROOT, "--build-arg", "BASE=localhost/python-slim")
        shop.build(
            "localhost/one",
            ROOT / "configs/container",
            *("-f", str(ROOT / "configs/container/one.Dockerfile")),
            *("--build-arg", "BASE=localhost/python-slim"),
            *("--build-arg", "BOTPROXY=localhost/botproxy"),
        )
        names = ("localhost/python-slim", "localhost/botproxy", "localhost/one")
        base, image, one = (shop.unpack(name) for name in names)
    finally:
        shop.close()
    print(f"base, image and the image with a bot in it are built from their Dockerfiles in "
          f"{time.monotonic() - begun:.0f} s")  # fmt: skip
    return base, image, one


def _size(base: Image, image: Image) -> str:
    """Measured on the stand-in; what the official base would make of it is arithmetic, and said to be."""
    ours = weight(image.root, "opt/botproxy")
    cached = sum(path.stat().st_size for path in (image.root / "usr").rglob("__pycache__/*"))
    assert image.bytes < LIMIT, f"{image.bytes / 1e6:.1f} MB"
    assert ours + cached < ALLOWANCE, f"{(ours + cached) / 1e6:.1f} MB are ours"
    removed = base.bytes - (image.bytes - ours - cached)
    return (
        f"measured on a stand-in for the slim image ({base.bytes / 1e6:.1f} MB, Debian's Python): "
        f"{image.bytes / 1e6:.1f} MB, of which /opt/botproxy {ours / 1e6:.1f} and byte code of Python's "
        f"library {cached / 1e6:.1f}; {removed / 1e6:.1f} of the base were removed. Not measured, for want "
        f"of a registry: the official base. It may have {(LIMIT - ours - cached) / 1e6:.0f} MB and more"
    )


def _judge(says: str, claim: Callable[[], str | None]) -> int:
    begun = time.monotonic()
    try:
        seen = claim()
    except Exception as error:  # noqa: BLE001  # whatever it is, the claim does not hold, and the rest is judged
        where = traceback.extract_tb(error.__traceback__)[-1]
        print(f"FAIL  {says}: {type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}")
        return 1
    took = time.monotonic() - begun
    print(f"PASS  {says}" + (f": {seen}" if seen else "") + f" ({took:.1f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
