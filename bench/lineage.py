"""Certificate files as certbot keeps them: archive/fullchain7.pem, and live/fullchain.pem as a link to it.

Decides what a renewal does to the disk, and in which order: all files of the new
certificate are written first, then each link is removed and made again, in certbot's
order. Every ECDSA certificate has a key of its own; all are below the same intermediate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tests import certs
from tests.certs import Issued

NAME = "bot.example.com"
Keys = Literal["ecdsa", "rsa"]
"""P-256, or RSA with 2048 bits."""
KINDS = ("cert", "privkey", "chain", "fullchain")
"""In certbot's order (ALL_FOUR in its storage.py)."""


class Lineage:
    """One certificate and those that followed it."""

    def __init__(self, directory: Path, keys: Keys = "ecdsa") -> None:
        """Makes live/, archive/ and ca.pem in `directory`, with a first certificate."""
        self._keys = keys
        self._authority = certs.root().intermediate()
        self._live, self._archive = directory / "live", directory / "archive"
        self._live.mkdir(mode=0o700)
        self._archive.mkdir(mode=0o700)
        self.ca = directory / "ca.pem"
        assert self._authority.root is not None
        self.ca.write_bytes(certs.pem(self._authority.root))
        self.number = 0
        """Of the newest certificate that was written."""
        self.first = self.renew()
        """Its serial."""

    @property
    def fullchain(self) -> Path:
        return self.link("fullchain")

    @property
    def privkey(self) -> Path:
        return self.link("privkey")

    def link(self, kind: str) -> Path:
        return self._live / f"{kind}.pem"

    def file(self, kind: str) -> Path:
        """Where the newest certificate has its `kind`."""
        return self._archive / f"{kind}{self.number}.pem"

    def issue(self) -> Issued:
        key = certs.rsa_key() if self._keys == "rsa" else certs.ecdsa_key()
        return self._authority.issue(NAME, key=key)

    def renew(self) -> str:
        """A new certificate in all four files; its serial."""
        issued = self.issue()
        self.write(issued)
        for kind in KINDS:
            self.swap(kind)
        return serial_of(issued)

    def renew_all_but_the_key(self) -> str:
        """What a renewal that was cut off leaves: the certificate is new, the key old."""
        issued = self.issue()
        self.write(issued)
        for kind in KINDS:
            if kind != "privkey":
                self.swap(kind)
        return serial_of(issued)

    def write(self, issued: Issued) -> None:
        """The next number in the archive; no link leads there yet."""
        self.number += 1
        for kind, data in contents(issued).items():
            self.write_file(kind, data)

    def write_file(self, kind: str, data: bytes) -> None:
        """One of them, at once."""
        file = self.file(kind)
        file.touch(mode=0o600)
        file.write_bytes(data)

    def swap(self, kind: str) -> None:
        """Let the link lead to the newest file."""
        self.link(kind).unlink(missing_ok=True)
        self.point(kind)

    def point(self, kind: str) -> None:
        """The second half of `swap`."""
        self.link(kind).symlink_to(f"../archive/{self.file(kind).name}")


def contents(issued: Issued) -> dict[str, bytes]:
    """What stands in each kind of file, in certbot's order."""
    return {
        "cert": certs.pem(issued.leaf),
        "privkey": issued.key_pem,
        "chain": certs.pem(*issued.chain[1:]),
        "fullchain": issued.chain_pem,
    }


def serial_of(issued: Issued) -> str:
    """As clients report it: hexadecimal, no zeros before it."""
    return f"{issued.leaf.serial_number:x}"
