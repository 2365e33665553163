"""The keeper process, from the fork to its end.

Loads and proves the configured certificates once, then hands them to every worker that
says hello and answers the admin endpoint, until SIGTERM or the supervisor's death.
It reads private keys, so it never talks to the network. Problems go to the operator
log; the exit code says what kind they are.

Before: `server.supervisor`, which forks. After: `keeper.rollout`, `keeper.admin`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

from botproxy.config.schema import Config
from botproxy.config.state import admin_socket, make_state_dir
from botproxy.errors import ConfigError
from botproxy.keeper import admin
from botproxy.keeper.admin import CertificateReport, Report, WorkerReport
from botproxy.keeper.load import Loaded, load_certificates, prove_certificates
from botproxy.keeper.rollout import Rollout
from botproxy.tls.context import Handed, hand

logger = logging.getLogger(__name__)

DONE = 0
MISCONFIGURED = 2

_FIRST_GENERATION = 1
_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO}


def run(
    config: Config,
    listener: ssl.SSLContext,
    channels: Sequence[socket.socket],
    ready_fd: int,
    life_fd: int,
) -> int:
    """Be the keeper; returns the exit code of the process: 0 when told to stop, 2 for wrong input.

    `listener` is only read. `channels` are the keeper's ends, one per worker slot, closed at the end.
    `ready_fd` is written the line `ready`; `life_fd` ends (EOF) when the supervisor does. They may be
    one socket, and stay the caller's.
    """
    _be_the_keeper()
    with ExitStack() as stack:
        try:
            loaded = load_certificates(config, datetime.now(UTC))
            prove_certificates(config, loaded, listener)
            _report_findings(loaded)
            sock = _bind_admin(config, stack)
        except ConfigError as error:
            for problem in error.problems:
                data = {"problem": str(problem), "hint": problem.hint}
                logger.error("the certificates or the admin socket cannot be used", extra={"data": data})
            return MISCONFIGURED
        handed = [hand(certificate) for certificate in loaded.certificates]
        for each in handed:
            stack.callback(os.close, each.fd)
        asyncio.run(_serve(loaded, handed, channels, sock, ready_fd, life_fd))
    return DONE


# Private


def _be_the_keeper() -> None:
    os.umask(0o077)
    # What the supervisor does about its signals is not ours. Ctrl-C and a lost terminal reach the
    # whole group; the supervisor answers them, and stops us when it does not need us any more.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _bind_admin(config: Config, stack: ExitStack) -> socket.socket | None:
    path = admin_socket(config)
    if path is None:
        return None
    if config.admin is None:
        make_state_dir(config)
    sock = admin.bind(path)
    stack.callback(path.unlink, missing_ok=True)
    return sock


def _report_findings(loaded: Loaded) -> None:
    for located in loaded.findings:
        finding = located.finding
        data = {
            "path": located.path,
            "file": located.file,
            "rule": finding.rule,
            "says": finding.sentence,
            "hint": finding.fix,
        }
        logger.log(_LEVELS[finding.severity], "about a certificate", extra={"data": data})


async def _serve(
    loaded: Loaded,
    handed: Sequence[Handed],
    channels: Sequence[socket.socket],
    sock: socket.socket | None,
    ready_fd: int,
    life_fd: int,
) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    loop.add_reader(life_fd, over.set)
    rollout = Rollout(_FIRST_GENERATION, handed, channels)
    server = await admin.serve(sock, lambda: _report(loaded, rollout)) if sock else None
    try:
        os.write(ready_fd, b"ready\n")
        logger.info("certificates are loaded", extra={"data": {"certificates": len(handed)}})
        await over.wait()
    except BrokenPipeError:
        pass  # the supervisor is gone
    finally:
        rollout.close()
        loop.remove_reader(life_fd)
        if server is not None:
            server.close()


def _report(loaded: Loaded, rollout: Rollout) -> Report:
    return Report(
        ready=rollout.is_complete,
        workers=tuple(WorkerReport(slot.index, slot.pid, slot.serving) for slot in rollout.slots),
        certificates=tuple(
            CertificateReport(c.names, c.not_after.isoformat(), c.fingerprint) for c in loaded.certificates
        ),
    )
