"""The two kinds of TLS contexts, and which certificate a client gets.

The listener context holds the policy and no certificate; it is made once, before the
fork, and never changed, so that its ticket keys are the same in every worker. A
certificate context holds a pair (RSA beside ECDSA: two) and the ALPN list; it is made
fresh for each pair and never loaded twice: a failed load leaves a context unusable, and
an old key type stays behind in it. `CertificateSet` maps names to such contexts.

Before: `tls.certificates`, `keeper.process`. After: `tls.proof`, and `tls.stream`, whose
server-name callback asks `CertificateSet.select`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from botproxy.tls.certificates import Certificate, KeyType
from botproxy.tls.rules import hsts_allowed

if TYPE_CHECKING:
    from botproxy.config import schema

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
PROTOCOLS = ["http/1.1"]


@dataclass(frozen=True, slots=True)
class Handed:
    """A certificate on its way from the keeper to a worker; whoever holds it closes `fd`."""

    names: tuple[str, ...]
    key_type: KeyType
    fingerprint: str
    hsts: bool
    fd: int
    """Sealed memfd with chain and key."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a client gets."""

    context: ssl.SSLContext
    hsts: bool
    """Whether HSTS may be promised over it."""
    names: tuple[str, ...]
    fingerprints: frozenset[str]
    """SHA-256 of the leaves: one for each key type."""
    content: tuple[bytes, ...] = field(repr=False)
    """SHA-256 of everything that was loaded, chains and keys."""


def listener_context(tls: schema.Tls) -> ssl.SSLContext:
    """The context of the TLS listeners: versions, ciphers, tickets; no certificate."""
    context = _policy(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if tls.min_version == "1.3" else ssl.TLSVersion.TLSv1_2
    # OpenSSL's second one costs a twentieth of each handshake and helps only who connects twice at once.
    context.num_tickets = 1
    return context


def certificate_context(pem: Sequence[int]) -> ssl.SSLContext:
    """A context that serves the pairs in the memfds `pem`, at most one of each key type.

    Raises ssl.SSLError when OpenSSL refuses a pair (key mismatch, weak key or signature).
    """
    context = _policy(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    for fd in pem:
        # Without a callable OpenSSL asks the terminal for a password and blocks.
        context.load_cert_chain(f"/proc/self/fd/{fd}", password=_no_password)
    # ALPN is chosen after the swap, from the certificate's context (OpenSSL final_alpn).
    context.set_alpn_protocols(PROTOCOLS)
    return context


def sealed_memfd(data: bytes) -> int:
    """A file in memory that holds `data` and that nobody can change any more; the caller closes it."""
    fd = os.memfd_create("botproxy-cert", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def hand(certificate: Certificate) -> Handed:
    """`certificate` in a memfd of its own, which the caller closes."""
    return Handed(
        names=certificate.names,
        key_type=certificate.key_type,
        fingerprint=certificate.fingerprint,
        hsts=hsts_allowed(certificate),
        fd=sealed_memfd(certificate.pem()),
    )


@dataclass(frozen=True, slots=True)
class CertificateSet:
    """Which certificate each host name gets; replaced as a whole, never changed."""

    exact: Mapping[str, Served]
    wildcards: Mapping[str, Served]
    """By the parent domain."""
    default: Served
    """The first certificate's."""
    strict: bool

    @classmethod
    def load(cls, handed: Sequence[Handed], strict: bool, known: Sequence[Served] = ()) -> CertificateSet:
        """The set of `handed`, in the order of the configuration; their fds may be closed afterwards.

        What is in `known` already, to the last byte, is taken from there: one renewal among many
        certificates costs what one costs.

        For each name the first certificate of each key type that covers it is served, one that holds
        the very name before one with a wildcard. Raises ssl.SSLError as `certificate_context` does.
        """
        loaded: dict[tuple[int, ...], Served] = {}
        by_content = {served.content: served for served in known}
        contents = [_content(each.fd) for each in handed]

        def serve(positions: tuple[int, ...]) -> Served:
            if positions not in loaded:
                content = tuple(contents[position] for position in positions)
                pairs = [handed[position] for position in positions]
                loaded[positions] = _serve(pairs, content, by_content.get(content))
            return loaded[positions]

        names = dict.fromkeys(name for certificate in handed for name in certificate.names)
        served = {name: serve(_positions(handed, name)) for name in names}
        first = handed[0].names
        return cls(
            exact=MappingProxyType({name: s for name, s in served.items() if not name.startswith("*.")}),
            wildcards=MappingProxyType({name[2:]: s for name, s in served.items() if name.startswith("*.")}),
            default=served[first[0]] if first else serve((0,)),
            strict=strict,
        )

    def select(self, sni: str | None) -> Served | None:
        """What a client gets that asked for `sni`, whatever it sent; None: refuse it.

        With `strict` a client that names no host is refused, too.
        """
        return self._covering(sni or "") or (None if self.strict else self.default)

    def serves(self, host: str) -> bool:
        """Whether a certificate covers `host` (without port; IPv6 addresses may stand in brackets)."""
        return self._covering(host.removeprefix("[").removesuffix("]")) is not None

    def hosts(self) -> tuple[str, ...]:
        """Every name, a wildcard as `*.parent`."""
        return (*self.exact, *(f"*.{parent}" for parent in self.wildcards))

    def each(self) -> list[Served]:
        """Every distinct thing that is served, the default first."""
        return list(dict.fromkeys([self.default, *self.exact.values(), *self.wildcards.values()]))

    def _covering(self, name: str) -> Served | None:
        name = name.lower().removesuffix(".")
        found = self.exact.get(name)
        if found is None:
            label, _, parent = name.partition(".")
            found = self.wildcards.get(parent) if label else None
        return found


# Private


def _policy(context: ssl.SSLContext) -> ssl.SSLContext:
    context.set_ciphers(CIPHERS)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # set by some builds: what is cut off is not whole
    return context


def _no_password() -> bytes:
    raise ValueError("a key without a password was expected")


def _positions(handed: Sequence[Handed], name: str) -> tuple[int, ...]:
    """Positions of the certificates that serve `name`, one of each key type."""
    wildcard = "*." + name.partition(".")[2]
    chosen: dict[KeyType, int] = {}
    for wanted in (name, wildcard):
        for position, certificate in enumerate(handed):
            if wanted in certificate.names:
                chosen.setdefault(certificate.key_type, position)
    return tuple(sorted(chosen.values()))


def _serve(pairs: Sequence[Handed], content: tuple[bytes, ...], known: Served | None) -> Served:
    """What serves `pairs`: `known`, if it holds the same and the same is said of it."""
    hsts = all(pair.hsts for pair in pairs)
    names = tuple(dict.fromkeys(name for pair in pairs for name in pair.names))
    fingerprints = frozenset(pair.fingerprint for pair in pairs)
    if known is not None and (known.hsts, known.names, known.fingerprints) == (hsts, names, fingerprints):
        return known
    context = certificate_context([pair.fd for pair in pairs])
    return Served(context, hsts, names, fingerprints, content)


def _content(fd: int) -> bytes:
    return hashlib.sha256(os.pread(fd, os.fstat(fd).st_size, 0)).digest()
