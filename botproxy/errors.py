"""Every failure of a request that botproxy can name.

Each says whose fault it is (`source`), what the client is told (`status`, None
when nobody is left to tell), whether trying again is safe (`retry`), and a short
`code` for the log. `says` is the sentence for the client and the operator, `key`
the configuration key that changes the rule. Neither ever holds bytes of the
request. `ConfigError` is the other kind: wrong input of the person who runs us.

Raised everywhere, turned into a response in one place: `policy.refusals`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar


class Source(Enum):
    """Whose fault a failure is."""

    CLIENT = "client"
    UPSTREAM = "upstream"
    PROXY = "proxy"


class Retry(Enum):
    """When the same request may be sent again without doing anything twice."""

    NO = "no"
    IF_REUSED = "if_reused"
    """Only on a connection that served a request before: the bot may have closed it while idle."""
    YES = "yes"
    """No byte of the request was sent."""


class ProxyError(Exception):
    """A request that ends with something else than the bot's answer.

    `detail` is a constant phrase of ours for the log; it never quotes the peer.
    """

    source: ClassVar[Source] = Source.PROXY
    status: ClassVar[int | None] = 500
    retry: ClassVar[Retry] = Retry.NO
    code: ClassVar[str] = "internal_error"
    says: ClassVar[str] = "the proxy failed; its log has the reason"
    key: ClassVar[str | None] = None

    def __init__(self, detail: str | None = None, *, retry_after: int | None = None) -> None:
        super().__init__(detail or self.says)
        self.detail = detail
        self.retry_after = retry_after


class InternalError(ProxyError):
    """A bug of ours; the traceback is in the operator log."""


class Stopping(ProxyError):
    """Cut off at the end of the drain time, or by the second SIGTERM."""

    status = 503
    code = "stopping"
    says = "the proxy is being stopped"
    key = "timeouts.drain"


# The client's fault


class ClientError(ProxyError):
    source = Source.CLIENT
    status: ClassVar[int | None] = 400
    code = "bad_request"
    says = "the request is not valid HTTP/1.1"


class BadRequest(ClientError):
    """Malformed or ambiguous head, framing or body (RFC 9112)."""


class MethodNotAllowed(ClientError):
    status = 405
    code = "method_not_allowed"
    says = "this method is not served"


class HeadTimeout(ClientError):
    status = 408
    code = "head_timeout"
    says = "the request head took too long to arrive"
    key = "timeouts.head"


class BodyTimeout(ClientError):
    status = 408
    code = "body_timeout"
    says = "the request body took too long to arrive"
    key = "timeouts.body"


class BodyTooLarge(ClientError):
    status = 413
    code = "body_too_large"
    says = "the request body is larger than this proxy accepts"
    key = "limits.body"


class RequestLineTooLong(ClientError):
    status = 414
    code = "request_line_too_long"
    says = "the request line is longer than this proxy accepts"
    key = "limits.request_line"


class ExpectationFailed(ClientError):
    status = 417
    code = "expectation_failed"
    says = "the only expectation served is 100-continue"


class Misdirected(ClientError):
    status = 421
    code = "unknown_host"
    says = "this host name is not served here"
    key = "routes"


class NotFound(ClientError):
    status = 404
    code = "no_route"
    says = "no route serves this path"
    key = "routes"


class NoChallenge(ClientError):
    status = 404
    code = "no_challenge"
    says = "there is no such ACME challenge"
    key = "acme_webroot"


class UpgradeRequired(ClientError):
    status = 426
    code = "websocket_version"
    says = "the WebSocket version served is 13"


class RateLimited(ClientError):
    status = 429
    code = "rate_limited"
    says = "too many requests"
    key = "limits.rate"


class RouteRateLimited(RateLimited):
    key = "routes.*.rate"


class HeadTooLarge(ClientError):
    status = 431
    code = "head_too_large"
    says = "the request head is larger than this proxy accepts"
    key = "limits.head"


class NotImplementedCoding(ClientError):
    status = 501
    code = "unknown_transfer_coding"
    says = "the only transfer coding served is chunked"


class VersionNotSupported(ClientError):
    status = 505
    code = "http_version"
    says = "the HTTP versions served are 1.0 and 1.1"


class PlainHttp(ClientError):
    """HTTP without TLS on a port that speaks TLS."""

    code = "plain_http"
    says = "this port speaks TLS; use an https:// address"


class ClearText(ClientError):
    status = 403
    code = "clear_text"
    says = "webhooks are not accepted in clear text; register the https:// address with the platform"


class ClientGone(ClientError):
    """The client left before its answer was complete (499 in the log, as nginx has it)."""

    status = None
    code = "client_gone"
    says = "the client closed the connection"


class SlowReader(ClientError):
    """The client took no byte of its response for too long."""

    status = None
    code = "slow_reader"
    says = "the client does not read its response"
    key = "timeouts.write"


# The bot's fault


class UpstreamError(ProxyError):
    source = Source.UPSTREAM
    status: ClassVar[int | None] = 502
    code = "bad_upstream_response"
    says = "the bot behind this proxy gave no valid response"
    key = "upstreams"


class BadResponse(UpstreamError):
    """The response breaks HTTP/1.1 or our limits on response heads."""


class UpstreamClosed(UpstreamError):
    """The connection ended before a response head."""

    retry = Retry.IF_REUSED
    code = "upstream_closed"
    says = "the bot behind this proxy closed the connection without a response"


class UpstreamAborted(UpstreamError):
    """The connection ended inside the response body; the head is usually on its way."""

    code = "upstream_aborted"
    says = "the bot behind this proxy broke off its response"


class ConnectFailed(UpstreamError):
    """No connection; the attempt may be repeated, for nothing was sent."""

    retry = Retry.YES
    status = 503
    code = "upstream_unreachable"
    says = "the bot behind this proxy does not accept connections"
    key = "upstreams.*.hold"


class WaitingRoomFull(UpstreamError):
    status = 503
    code = "waiting_room_full"
    says = "too many requests already wait for the bot behind this proxy"
    key = "upstreams.*.hold"


class UpstreamTlsFailed(UpstreamError):
    """An https:// upstream whose certificate does not verify: failing closed, not held."""

    code = "upstream_tls"
    says = "the TLS connection to the bot behind this proxy failed"
    key = "upstreams.*.url"


class ConnectTimeout(UpstreamError):
    status = 504
    code = "connect_timeout"
    says = "the bot behind this proxy did not accept the connection in time"
    key = "timeouts.connect"


class ResponseTimeout(UpstreamError):
    status = 504
    code = "response_timeout"
    says = "the bot behind this proxy did not answer in time"
    key = "timeouts.response"


class UpstreamStalled(UpstreamError):
    """Silence in the middle of a response body, or a bot that does not read its request."""

    status = 504
    code = "upstream_stalled"
    says = "the bot behind this proxy stopped in the middle of an exchange"
    key = "timeouts.idle"


# The operator's input


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration, as the person who wrote it shall read it."""

    where: str
    """`file:line`, or the option or variable that holds the value."""
    path: str
    """Dotted path of the key, empty for the file as a whole."""
    says: str
    """`expected X, found Y`."""
    hint: str | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.path, self.says) if part)


class ConfigError(Exception):
    """Everything that is wrong with a configuration, at once."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class NotRead(ConfigError):
    """A configuration could not be read, through no fault of its own. Trying again may help."""

    def __init__(self, says: str) -> None:
        super().__init__([Problem("", "", says)])
