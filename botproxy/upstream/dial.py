"""Making one connection to a bot: resolve, connect, TLS.

One attempt, under one deadline, and a named error when it fails. Names are looked
up off the loop and remembered for a short while, never over a failed connect, so
that a bot that moves is found. Trying again is `upstream.hold`'s business.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
import ssl
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from botproxy import errors
from botproxy.config.values import Target, parse_target
from botproxy.net.deadlines import Deadlines
from botproxy.net.readiness import Readiness
from botproxy.net.stream import SocketStream
from botproxy.tls import stream as tls

if TYPE_CHECKING:
    from botproxy.config.schema import Upstream

logger = logging.getLogger(__name__)

RESOLVED_FOR = 30.0
"""Seconds a looked-up name is believed while connects succeed."""

_UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY)
_MADE = (0, errno.EISCONN)

_Address = tuple[int, Any]
"""Socket family and address."""


class Dialer:
    """Connections to one upstream."""

    def __init__(
        self,
        upstream: Upstream,
        verification: ssl.SSLContext | None,
        connect_timeout: float,
        loop: asyncio.AbstractEventLoop,
        deadlines: Deadlines,
    ) -> None:
        """`verification`: as `verifications` made it, for https:// upstreams."""
        self._target = parse_target(upstream.url)
        self._timeout = connect_timeout
        self._loop = loop
        self._deadlines = deadlines
        self._tls = verification
        self._fixed = _fixed_addresses(self._target)
        self._resolved: list[_Address] = []
        self._resolved_at = 0.0

    async def dial(self) -> SocketStream:
        """A new connection.

        Raises ConnectFailed (nothing was sent: try again), ConnectTimeout, UpstreamTlsFailed.
        """
        deadline = self._loop.time() + self._timeout
        failure: OSError | None = None
        for family, address in self._fixed or await self._resolve(deadline):
            try:
                sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            except OSError as error:  # no descriptors left: they come back, and nothing was sent
                failure = error
                continue
            try:
                code = _connect(sock, family, address)
                if code in _UNDER_WAY:
                    code = await self._finish(sock, deadline)
                if code not in _MADE:
                    raise OSError(code, os.strerror(code))
                if self._tls is None:
                    return SocketStream(sock, self._loop, self._deadlines)
                return await self._wrap(sock, self._tls, deadline)
            except TimeoutError:
                sock.close()
                self._resolved = []
                raise errors.ConnectTimeout from None
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
        self._resolved = []
        raise errors.ConnectFailed(_reason(failure)) from failure

    async def _finish(self, sock: socket.socket, deadline: float) -> int:
        """Wait until a connect is over; its error number."""
        with Readiness(sock, self._loop, self._deadlines, deadline) as readiness:
            await readiness.writable()
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    async def _wrap(self, sock: socket.socket, context: ssl.SSLContext, deadline: float) -> SocketStream:
        try:
            return await tls.connect(sock, context, self._target.host, self._loop, self._deadlines, deadline)
        except tls.HandshakeFailed as error:
            raise errors.UpstreamTlsFailed(error.code) from error

    async def _resolve(self, deadline: float) -> list[_Address]:
        now = self._loop.time()
        if self._resolved and now - self._resolved_at < RESOLVED_FOR:
            return self._resolved
        try:
            async with asyncio.timeout_at(deadline):
                found = await self._loop.getaddrinfo(
                    self._target.host, self._target.port, type=socket.SOCK_STREAM
                )
        except TimeoutError:
            raise errors.ConnectTimeout("the name lookup took too long") from None
        except socket.gaierror:
            raise errors.ConnectFailed("the host name does not resolve") from None
        self._resolved = [(family, address) for family, _, _, _, address in found]
        self._resolved_at = now
        return self._resolved


def verifications(upstreams: Mapping[str, Upstream]) -> dict[str, ssl.SSLContext]:
    """How each https:// bot is verified, made while `ca` files may still be read.

    Raises ConfigError that names every `ca` that cannot be used.
    """
    contexts, problems = {}, []
    for name, upstream in upstreams.items():
        if parse_target(upstream.url).scheme != "https":
            continue
        try:
            contexts[name] = _verification(upstream)
        except OSError as error:  # ssl.SSLError is one
            unreadable = error.errno is not None and not isinstance(error, ssl.SSLError)
            why = (error.strerror or str(error)).lower() if unreadable else "it is not PEM"
            problems.append(
                errors.Problem(
                    where=str(upstream.ca),
                    path=f"upstreams.{name}.ca",
                    says=f"expected a PEM file of CA certificates, found none that can be read ({why})",
                    hint="name the file that holds the CA which signed the bot's certificate",
                )
            )
    if problems:
        raise errors.ConfigError(problems)
    return contexts


def _connect(sock: socket.socket, family: int, address: Any) -> int:
    """Begin to connect; the error number, `_UNDER_WAY` while it goes on."""
    if family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        # On the loopback the connection is usually made by now: asking again is cheaper than waiting.
        code = sock.connect_ex(address)
    return code


def _verification(upstream: Upstream) -> ssl.SSLContext:
    """Against `ca` when set, else the system's store. Never off."""
    if upstream.ca is not None and not stat.S_ISREG(os.stat(upstream.ca).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")  # the supervisor waits for no pipe
    context = ssl.create_default_context(cafile=upstream.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # set by some builds: what is cut off is not whole
    context.set_alpn_protocols(["http/1.1"])
    return context


def _fixed_addresses(target: Target) -> list[_Address]:
    """Addresses that need no lookup; `localhost` is both loopbacks, whatever the hosts file says."""
    if target.scheme == "unix":
        return [(socket.AF_UNIX, target.path)]
    if target.host == "localhost":
        return [(socket.AF_INET, ("127.0.0.1", target.port)), (socket.AF_INET6, ("::1", target.port))]
    try:
        version = ipaddress.ip_address(target.host).version
    except ValueError:
        return []
    return [(socket.AF_INET if version == 4 else socket.AF_INET6, (target.host, target.port))]


def _reason(failure: OSError | None) -> str:
    if failure is None or failure.errno is None:
        return "no address to connect to"
    return os.strerror(failure.errno).lower()
