"""Asks the real listener what it serves, until every worker has answered.

That a worker says it serves a certificate is one thing, what a client gets another. A
probe is a full handshake without a session over the address that clients use. Which
worker takes a connection is the kernel's choice, so many are made; from which ports they
come was told to all workers before, and the one that meets a probe says so. A listener
that cannot be reached proves nothing, for or against: only a wrong answer is a failure.

Before: `keeper.rollout`. After: the public listener.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from botproxy.keeper.workers import Workers
from botproxy.tls.certificates import Certificate
from botproxy.tls.context import CertificateSet
from botproxy.tls.proof import askable, client, client_of_type, fingerprint, is_askable
from botproxy.tls.stream import is_broken_off

PATIENCE = 5.0
"""Seconds for all probes of one question."""
ONE_HANDSHAKE = 2.0
"""Seconds for one probe; a worker under load answers later than it would."""
THREADS = 8
NO_PEER_KNOWN = b"PROXY UNKNOWN\r\n"
"""PROXY protocol, version 1: the connection is our own."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A TLS listener of ours, as the kernel names it."""

    family: int
    address: tuple[str, int]
    proxy_protocol: bool
    """Whether connections of this machine must begin with a PROXY header."""
    shared: bool
    """Whether all workers accept from one socket, so that some may never get a probe."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and which answers are right."""

    name: str | None
    """Server name; None asks without one."""
    context: ssl.SSLContext
    right: frozenset[str]
    """SHA-256 of the leaves that may be served."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What came of the probes."""

    right: frozenset[int]
    """Workers that answered every question rightly."""
    wrong: Mapping[int, str]
    """By worker what it served instead, or why its handshake failed."""
    is_foreign: bool
    """Whether somebody answered who is none of our workers."""
    is_reachable: bool
    """Whether any worker of ours answered."""
    mute: frozenset[int] = frozenset()
    """Workers that were told of probes and said nothing."""


def questions(certificates: CertificateSet, certificate: Certificate, min_version: str) -> list[Question]:
    """How to see `certificate`, one of `certificates`, from outside; none when no client ever gets it."""
    names: list[str | None] = [askable(name) for name in certificate.names if is_askable(askable(name))]
    for name in (*names, None):
        served = certificates.select(name)
        if served is None or certificate.fingerprint not in served.fingerprints:
            continue
        if len(served.fingerprints) == 1:
            return [Question(name, client(), served.fingerprints)]
        if min_version == "1.3":  # a client cannot choose the type of key: each is a right answer
            return [Question(name, client(), served.fingerprints)]
        wanted = "aRSA" if certificate.key_type == "rsa" else "aECDSA"
        return [Question(name, client_of_type(wanted), frozenset({certificate.fingerprint}))]
    return []


async def ask_all(endpoint: Endpoint, asked: Sequence[Question], workers: Workers) -> Answers:
    """Put every question to every worker that is there."""
    right = frozenset(worker.pid for worker in workers.present)
    wrong: dict[int, str] = {}
    mute: set[int] = set()
    foreign = False
    reachable = not asked
    try:
        for question in asked:
            answers = await _ask(endpoint, question, workers)
            right &= answers.right
            wrong |= answers.wrong
            mute |= answers.mute
            foreign = foreign or answers.is_foreign
            reachable = reachable or answers.is_reachable
    finally:
        workers.expect(())
    return Answers(right, wrong, foreign, reachable, frozenset(mute))


# Private


async def _ask(endpoint: Endpoint, question: Question, workers: Workers) -> Answers:
    right: set[int] = set()
    wrong: dict[int, str] = {}
    mute: frozenset[int] = frozenset()
    foreign = False
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends and not wrong:
        crew = {worker.pid for worker in workers.present}
        if crew and crew <= right:
            break
        answers, mute = await _volley(endpoint, question, workers, 2 * len(crew) + 2)
        for pid, shown in answers:
            if pid is None:
                foreign = foreign or shown is not None
            elif shown in question.right:
                right.add(pid)
            elif shown is not None:
                wrong[pid] = shown
        if endpoint.shared and right:
            right |= crew  # who accepts from a shared socket is not ours to say; the others gave their word
        if all(pid is None for pid, _ in answers):
            await asyncio.sleep(0.2)  # out of reach in this moment
    return Answers(frozenset(right), wrong, foreign, bool(right or wrong), mute)


Answer = tuple[int | None, str | None]
"""The worker that met the probe, and what it showed: a fingerprint, or the reason of a failed handshake."""


async def _volley(
    endpoint: Endpoint, question: Question, workers: Workers, count: int
) -> tuple[list[Answer], frozenset[int]]:
    """`count` handshakes at once, and the workers that did not answer when they were told of them."""
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.socket(endpoint.family)) for _ in range(count)]
        for sock in socks:
            sock.bind(("", 0))
        ports = tuple(int(sock.getsockname()[1]) for sock in socks)
        workers.expect(ports)
        await workers.until(lambda: all(worker.expecting == ports for worker in workers.present), 1.0)
        # Blocking sockets are all that a client needs that ends after its handshake; in threads of their
        # own, for others write to disks.
        threads = stack.enter_context(ThreadPoolExecutor(THREADS, "probe"))
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(threads, _shake, endpoint, question, sock) for sock in socks]
        answers = dict(zip(ports, await asyncio.gather(*jobs), strict=True))
        await workers.until(lambda: {p for p in ports if answers[p]} <= workers.met.keys(), 1.0)
        mute = frozenset(worker.pid for worker in workers.present if worker.expecting != ports)
        return [(workers.met.get(port), answer) for port, answer in answers.items()], mute


def _shake(endpoint: Endpoint, question: Question, sock: socket.socket) -> str | None:
    """What the listener showed to `sock`; None when it was not reached."""
    sock.settimeout(ONE_HANDSHAKE)
    try:
        sock.connect(endpoint.address)
        if endpoint.proxy_protocol:
            sock.sendall(NO_PEER_KNOWN)
        with question.context.wrap_socket(sock, server_hostname=question.name) as tls:
            return fingerprint(tls)
    except ssl.SSLError as error:
        if is_broken_off(error):
            return None
        return (error.reason or "tls_error").lower()
    except OSError:
        return None
