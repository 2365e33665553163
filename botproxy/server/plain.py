"""Port 80: a redirect to https, ACME challenges, and nothing else.

Redirects only to hosts that are served here (never an open redirect), and refuses
webhooks in clear text with a hint, because whatever secret they carry has just
been seen by everybody on the way. Nothing is ever forwarded to a bot.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import stat
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from botproxy import errors
from botproxy.fields import Fields
from botproxy.http.dates import http_date
from botproxy.http.exchange import Exchange
from botproxy.http.h1 import Kept
from botproxy.keeper.paths import obstacle
from botproxy.model import Record, RequestHead
from botproxy.policy import refusals
from botproxy.policy.headers import TowardClient, new_request_id

logger = logging.getLogger(__name__)

CHALLENGE_PATH = b"/.well-known/acme-challenge/"
_TOKEN = re.compile(rb"[A-Za-z0-9_-]{1,128}")  # RFC 8555 8.3: base64url
CHALLENGE_LIMIT = 4096
"""Bytes of a key authorization; real ones have 87."""


class Plain:
    """The application behind clear-text listeners."""

    def __init__(
        self,
        https_port: int,
        webroot: str | None,
        serves: Callable[[str], bool],
        toward_client: TowardClient,
        record: Callable[[Record], None],
    ) -> None:
        """`serves`: whether a host name is one of ours."""
        self._https_port = https_port
        self._webroot = Path(webroot) / ".well-known/acme-challenge" if webroot else None
        self._serves = serves
        self._toward_client = toward_client
        self._record = record
        self._complained = False

    async def handle(self, exchange: Exchange, kept: dict[str, Kept]) -> None:
        head = exchange.head
        assert head is not None
        exchange.record.id = new_request_id()
        exchange.record.route = "plain"
        if not exchange.body_complete:
            exchange.close_after()  # bodies are never read here
        try:
            if head.target.startswith(CHALLENGE_PATH) and head.method in (b"GET", b"HEAD"):
                self._answer(exchange, 200, b"text/plain", self._challenge(head.target))
            else:
                self._redirect(exchange, head)
        except errors.ProxyError as error:
            self._fail(exchange, error)
        finally:
            self._finish(exchange)

    def refuse(self, exchange: Exchange, error: errors.ProxyError) -> None:
        """Answer a request that has no valid head."""
        exchange.record.id = new_request_id()
        self._fail(exchange, error)
        self._finish(exchange)

    def _challenge(self, target: bytes) -> bytes:
        """The content of a challenge file; only plain files directly in the directory, never a link out."""
        token = target.removeprefix(CHALLENGE_PATH)
        if self._webroot is None or not _TOKEN.fullmatch(token):
            raise errors.NoChallenge
        file = self._webroot / token.decode("ascii")
        try:
            fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except PermissionError:
            self._complain(obstacle(str(file)))
            raise errors.NoChallenge from None
        except OSError:
            raise errors.NoChallenge from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise errors.NoChallenge
            return os.read(fd, CHALLENGE_LIMIT)
        finally:
            os.close(fd)

    def _complain(self, closed: str) -> None:
        """A CA that gets 404 tells its operator nothing of permissions. Said once."""
        if not self._complained:
            self._complained = True
            hint = f"let workers (uid {os.geteuid()}) in: chmod o+rx {shlex.quote(closed)}"
            logger.error("an ACME challenge cannot be read", extra={"data": {"closed": closed, "hint": hint}})

    def _redirect(self, exchange: Exchange, head: RequestHead) -> None:
        if not head.host or not self._serves(head.host):
            raise errors.Misdirected
        if head.method == b"POST":
            raise errors.ClearText
        # Whoever came by the default port finds https on its default port too, also behind a container's
        # port mapping, which hides from us what the world sees.
        _, named, asked = head.authority.rpartition(b"]")[2].rpartition(b":")
        default = self._https_port == 443 or not named or asked == b"80"
        port = b"" if default else b":%d" % self._https_port
        path = head.target if head.target != b"*" else b"/"
        location = b"https://" + head.host.encode("ascii") + port + path
        self._answer(exchange, 308, b"text/plain", b"", location)

    def _answer(
        self, exchange: Exchange, status: int, kind: bytes, body: bytes, location: bytes | None = None
    ) -> None:
        fields = [(b"Content-Type", kind)]
        if location is not None:
            fields.append((b"Location", location))
        self._send(exchange, status, Fields.of(*fields), body)

    def _fail(self, exchange: Exchange, error: errors.ProxyError) -> None:
        exchange.record.error, exchange.record.detail = error.code, error.detail
        status, fields, body = refusals.render(error, exchange.record.id, exchange.accept)
        self._send(exchange, status, fields, body)

    def _send(self, exchange: Exchange, status: int, fields: Fields, body: bytes) -> None:
        exchange.send_head(status, self._toward_client.block(fields, False, "", http_date), len(body))
        exchange.send_body(body)
        exchange.finish()

    def _finish(self, exchange: Exchange) -> None:
        exchange.record.total = monotonic() - exchange.record.started
        self._record(exchange.record)
