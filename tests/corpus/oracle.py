"""What must hold, whatever was sent: judged by what the bot saw and what the client got.

`invariants` needs to know nothing about the bytes sent, so that mutated ones are judged by it too;
`verdict` adds what the corpus says about one entry. Both return violations in words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import h11

from tests.corpus.cases import Case
from tests.corpus.origin import Request, Visit

_STATUS = re.compile(rb"HTTP/1\.1 ([1-9][0-9]{2}) [A-Za-z' -]+")
_FIELD = re.compile(rb"([A-Za-z0-9_-]+): ([^\x00-\x08\x0a-\x1f\x7f]*)")
REFUSALS = frozenset({400, 405, 408, 413, 414, 417, 426, 431, 501, 505})


@dataclass
class Response:
    """One response as the client got it."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes = b""
    complete: bool = False
    until_end: bool = False
    """Its body has no other end than the connection's."""

    def values(self, name: str) -> list[str]:
        return [value for other, value in self.fields if other == name]

    @property
    def options(self) -> set[str]:
        """What `Connection` says."""
        return {option.strip() for value in self.values("connection") for option in value.split(",")}

    @property
    def serial(self) -> int:
        """Which request of the bot's it answers; 0 when the bot never saw one."""
        return int((self.values("x-serial") or ["0"])[0])


@dataclass
class Outcome:
    """What became of one case."""

    received: bytes
    ending: str
    visits: list[Visit]
    fresh: bool
    """Whether a connection made afterwards was served."""
    responses: list[Response] = field(default_factory=list)

    @property
    def complete(self) -> list[Request]:
        """Requests that the bot took for whole, in order."""
        return sorted(
            (each for visit in self.visits for each in visit.complete), key=lambda each: each.serial
        )

    @property
    def reached_the_bot(self) -> bool:
        return any(visit.raw for visit in self.visits)

    @property
    def decision(self) -> tuple[object, ...]:
        """What must not depend on how the bytes were cut into pieces."""
        return [each.meaning for each in self.complete], [each.status for each in self.responses]


class NotStrictError(Exception):
    """The client got something that is not a canonical response."""


def read_responses(data: bytes, methods: dict[int, str]) -> list[Response]:
    """All responses in `data`, interim ones included; `methods` of requests by serial."""
    found: list[Response] = []
    while data:
        response, data = _read_head(data)
        found.append(response)
        data = _take_body(response, data, methods.get(response.serial, "GET"))
    return found


def _read_head(data: bytes) -> tuple[Response, bytes]:
    head, mark, rest = data.partition(b"\r\n\r\n")
    start, *lines = head.split(b"\r\n")
    match = _STATUS.fullmatch(start)
    fields = [_FIELD.fullmatch(line) for line in lines]
    if not mark or match is None or not all(fields):
        raise NotStrictError(f"the client got {head[:80]!r}")
    pairs = [(each[1].decode().lower(), each[2].decode("latin-1")) for each in fields if each]
    return Response(int(match[1]), pairs), rest


def read_response(data: bytes, method: str) -> tuple[Response | None, bytes]:
    """The first response that is no interim one, complete or not, and what lies behind it."""
    while b"\r\n\r\n" in data:
        response, rest = _read_head(data)
        rest = _take_body(response, rest, method)
        if response.status == 101 or response.status >= 200:
            return response, rest
        data = rest
    return None, data


def _take_body(response: Response, data: bytes, method: str) -> bytes:
    lengths, codings = response.values("content-length"), response.values("transfer-encoding")
    if len(lengths) + len(codings) > 1:
        raise NotStrictError("a response framed more than once")
    if method == "HEAD" or response.status < 200 or response.status in (204, 304):
        response.complete = True
        return data
    if codings:
        return _take_chunks(response, data)
    if lengths:
        size = int(lengths[0])
        response.body, data = data[:size], data[size:]
        response.complete = len(response.body) == size
        return data
    response.body = data
    response.until_end = True
    return b""


def _take_chunks(response: Response, data: bytes) -> bytes:
    while True:
        line, mark, rest = data.partition(b"\r\n")
        if not mark:
            return b""
        size = int(line, 16)
        response.body += rest[:size]
        if len(rest) < size + 2:
            return b""
        if rest[size : size + 2] != b"\r\n":
            raise NotStrictError("a chunk without its end")
        data = rest[size + 2 :]
        if size == 0:
            response.complete = True
            return data


def as_h11_reads(raw: bytes) -> list[tuple[str, str, bytes]]:
    """Method, target and body of the whole requests that h11, which is not ours, finds in `raw`."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(raw)
    connection.receive_data(b"")
    found = []
    method, target, body = "", "", b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            method, target, body = event.method.decode(), event.target.decode("latin-1"), b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            found.append((method, target, body))
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return found
            connection.start_next_cycle()
        else:
            return found


def _h11_disagrees(visit: Visit) -> bool:
    try:
        seen = as_h11_reads(visit.raw)
    except h11.RemoteProtocolError:
        # A request cut short: h11 says so only after the whole ones, so it must be the rest alone.
        whole = b"".join(_as_sent(visit))
        seen = as_h11_reads(whole)
    return seen != [request.meaning for request in visit.complete]


def _as_sent(visit: Visit) -> list[bytes]:
    incomplete = [request for request in visit.requests if not request.complete]
    return [visit.raw[: visit.raw.index(incomplete[0].head)] if incomplete else visit.raw]


def invariants(outcome: Outcome, *, client_ended: bool = False) -> list[str]:
    """Violations of what holds for every input. Fills in `outcome.responses`."""
    found = [f"not canonical toward the bot: {visit.fault}" for visit in outcome.visits if visit.fault]
    found += ["h11 reads other requests than the bot" for visit in outcome.visits if _h11_disagrees(visit)]
    if not outcome.fresh:
        found.append("a fresh connection is not served")
    methods = {request.serial: request.method for request in outcome.complete}
    try:
        responses = read_responses(outcome.received, methods)
    except NotStrictError as error:
        return [*found, str(error)]
    finals = outcome.responses = [response for response in responses if response.status >= 200]
    if not all(response.complete for response in finals):
        found.append("an incomplete response")
    served = [response.serial for response in finals if response.serial]
    wanted = [request.serial for request in outcome.complete]
    if served != wanted and not (client_ended and wanted[: len(served)] == served):
        found.append(f"the bot served {wanted}, the client got the answers of {served}")
    for at, response in enumerate(finals):
        if response.serial:
            continue
        if response.status not in REFUSALS:
            found.append(f"status {response.status}")
        if at + 1 < len(finals):
            found.append("the connection went on after a refusal")
        if "close" not in response.options:
            found.append("a refusal that does not announce the end")
    if outcome.ending != "in order" and not client_ended:
        found.append(f"the connection ended {outcome.ending}")
    return found


def verdict(case: Case, outcome: Outcome) -> list[str]:
    """All violations of one entry of the request side."""
    found = invariants(outcome, client_ended=case.ends)
    number = len(outcome.complete)
    wanted = case.oracle.get("upstream_requests", 1)
    if case.expect == "reject":
        found += _rejected(case, outcome)
    elif case.expect == "accept" or number:
        if number != wanted and ("upstream_requests" in case.oracle or case.expect == "accept"):
            found.append(f"{number} requests at the bot instead of {wanted}")
        found += [each for request in outcome.complete for each in _forwarded(case, request)]
    if case.expect == "accept":
        found += _meaning_kept(case, outcome)
    return found


def _rejected(case: Case, outcome: Outcome) -> list[str]:
    found = []
    if outcome.complete:
        found.append("a whole request at the bot")
    in_body = case.oracle["cat"] == "chunk" or case.name == "cl-incomplete"
    if outcome.reached_the_bot and not in_body:
        found.append("bytes at the bot")
    statuses = [response.status for response in outcome.responses]
    if len(statuses) != 1 and not (case.ends and not statuses):
        found.append(f"answered with {statuses}")
    if 408 in statuses and case.oracle.get("then") != "wait":
        found.append("waited for instead of refused")
    return found


def _forwarded(case: Case, request: Request) -> list[str]:
    oracle = case.oracle
    names = {name for name, _ in request.fields}
    found = [f"{name} at the bot" for name in oracle.get("upstream_must_not_have", ()) if name in names]
    found += [f"no {name} at the bot" for name in oracle.get("upstream_must_have", ()) if name not in names]
    found += [
        f"{value} at the bot"
        for value in oracle.get("upstream_no_value", ())
        if value.encode() in request.head
    ]
    if oracle.get("upstream_target", request.target) != request.target:
        found.append(f"target {request.target}")
    return found


def _meaning_kept(case: Case, outcome: Outcome) -> list[str]:
    """What arrives must be what h11 reads in the entry itself, as far as it accepts it."""
    try:
        meant = as_h11_reads(case.raw)
    except h11.RemoteProtocolError:
        return []
    seen = [request.meaning for request in outcome.complete]
    target = case.oracle.get("upstream_target")
    meant = [(method, target or was, body) for method, was, body in meant]
    return [] if seen == meant else ["another method, target or body at the bot"]
