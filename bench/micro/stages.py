"""The stages of one exchange, each as a call that can be repeated.

The request is a webhook as Telegram sends it, the response that of a small bot. Only functions that other
modules of botproxy call are used here, so that the same file measures an older tree as well.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

from botproxy.config.schema import Config
from botproxy.http.body import LAST_CHUNK, ChunkedDecoder, chunk
from botproxy.http.dates import http_date
from botproxy.http.head import HeadLimits, parse_request, parse_response
from botproxy.model import Peer, Record, TlsInfo
from botproxy.observe import access
from botproxy.policy.headers import TowardBot, TowardClient, client_address
from botproxy.policy.routes import RouteTable
from botproxy.tls.context import listener_context
from tests import certs

Stage = Callable[[], object]

BODY = b'{"update_id":1,"message":{"text":"hello"}}' * 48
REQUEST = (
    b"POST /telegram HTTP/1.1\r\nHost: bot.example.com\r\nUser-Agent: Mozilla/5.0\r\nAccept: */*\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\nContent-Type: application/json\r\nContent-Length: 2016\r\n"
    b"Connection: keep-alive\r\nX-Telegram-Bot-Api-Secret-Token: abcdefg\r\nAccept-Language: en\r\n\r\n"
)
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
    b"Content-Type: application/json\r\nContent-Length: 11\r\nCache-Control: no-store\r\n\r\n"
)
ENOUGH = 200
"""Heads after which their shape is a familiar one."""
LIMITS = HeadLimits(16 * 1024, 100, 8 * 1024)
CONFIG = Config.model_validate(
    {
        "certificates": [{"chain": "chain.pem", "key": "key.pem"}],
        "upstreams": {"bot": {"url": "http://127.0.0.1:8000"}, "site": {"url": "http://127.0.0.1:8001"}},
        "routes": [
            {"hosts": ["bot.example.com"], "path": "/telegram", "upstream": "bot"},
            {"hosts": ["bot.example.com"], "path": "/", "upstream": "site"},
        ],
    }
)
PEER = Peer("149.154.167.197", 50000, 443)
WALL = 1_795_464_000.123


def exchange() -> dict[str, Stage]:
    """What every request on a kept connection passes through, in order."""
    request, response = parse_request(REQUEST, LIMITS), parse_response(RESPONSE)
    routes, toward_bot, toward_client = RouteTable(CONFIG), TowardBot(CONFIG), TowardClient(CONFIG)
    record = _record()
    return {
        "request head": lambda: parse_request(REQUEST, LIMITS),
        "client": lambda: client_address(PEER, request.fields, CONFIG.trusted_proxies),
        "request id": lambda: toward_bot.request_id(PEER, request.fields),
        "route": lambda: routes.match(request.host, request.target),
        "request fields": lambda: toward_bot.block(request, PEER, PEER.address, b"https", "0123456789abcdef"),
        "response head": lambda: parse_response(RESPONSE),
        "response fields": lambda: toward_client.block(response.fields, True, request.host, http_date),
        "access line": lambda: access.line(record, WALL),
    }


def others() -> dict[str, Stage]:
    """What some requests need, and what a connection begins with."""
    chunked = chunk(BODY) + LAST_CHUNK
    for _ in range(ENOUGH):
        request, response = parse_request(REQUEST, LIMITS), parse_response(RESPONSE)
    asked, answered = request.fields.shape, response.fields.shape
    return {
        "request head, as before": lambda: parse_request(REQUEST, LIMITS, asked),
        "response head, as before": lambda: parse_response(RESPONSE, answered),
        "chunked body in": lambda: ChunkedDecoder().feed(chunked),
        "chunked body out": lambda: chunk(BODY) + LAST_CHUNK,
        "handshake, both sides": _handshake(),
    }


def stages() -> dict[str, Stage]:
    """All of them."""
    return exchange() | others()


# Private


def _record() -> Record:
    tls = TlsInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384", "bot.example.com", False, 0.004, True)
    record = Record("0123456789abcdef", PEER, PEER.address, 0.0, tls, False)
    record.method, record.target, record.status = b"POST", b"/telegram", 200
    record.bytes_in, record.bytes_out = len(BODY), 11
    record.route, record.upstream, record.reused = "bot.example.com/telegram", "bot", True
    record.upstream_seconds, record.total = 0.0031, 0.0034
    return record


def _handshake() -> Stage:
    """TLS 1.3 with our settings and an ECDSA key, OpenSSL on both sides, no socket between them."""
    served = certs.load(certs.root().intermediate().issue("bot.example.com")).each()[0].context
    listener = listener_context(CONFIG.tls)

    def choose(tls: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        tls.context = served

    listener.sni_callback = choose
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE

    def shake() -> None:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        asking = client.wrap_bio(to_client, to_server, server_hostname="bot.example.com")
        answering = listener.wrap_bio(to_server, to_client, server_side=True)
        for side in (asking, answering, asking, answering):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass  # it is the other's turn
        assert answering.version() == "TLSv1.3"

    return shake
