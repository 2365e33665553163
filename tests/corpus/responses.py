"""Plays the response side of the corpus as a bot, many cases at a time, and judges what the client got.

Each client asks once, gets what botproxy makes of the bot's bytes, and asks again on the same
connection as far as it may: the second answer must be the second request's, whatever the bot had sent
too much.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass

import h11

from tests.corpus.cases import SEGMENTATIONS, Case, Segmentation, load
from tests.corpus.client import Client
from tests.corpus.front import front
from tests.corpus.oracle import NotStrictError, Response, read_response
from tests.corpus.origin import Origin, Request, Visit
from tests.corpus.requests import AT_ONCE, Addresses

WEBSOCKET = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
]
NEXT = b"GET /next HTTP/1.1\r\nHost: bot.example\r\nConnection: close\r\n\r\n"
ANSWER_TO_NEXT = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext"
BREAKS_IN_BODY = ("r-ck-", "r-cl-short")
"""Names of entries whose head is good, so that the client may have got it before the fault."""


class Script:
    """What the bot does on one case."""

    def __init__(self, case: Case, segmentation: Segmentation) -> None:
        self.case = case
        self.segmentation = segmentation
        self.over = asyncio.Event()
        """The bot has sent everything, or was cut off."""

    @property
    def name(self) -> str:
        return f"{self.case.name} {self.segmentation.__name__}"

    @property
    def method(self) -> str:
        return str(self.case.oracle["req_method"]).partition("+")[0]

    @property
    def request(self) -> bytes:
        fields = WEBSOCKET if "websocket" in self.case.oracle["req_method"] else []
        lines = [f"{self.method} /case HTTP/1.1", "Host: bot.example", *map(": ".join, fields), "", ""]
        return "\r\n".join(lines).encode()

    async def play(self, writer: asyncio.StreamWriter) -> bool:
        try:
            for piece in self.segmentation(self.case.raw):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)  # the others' turn, botproxy's among them
        finally:
            self.over.set()
        return not self.case.ends


@dataclass
class Answered:
    """What became of one case."""

    script: Script
    first: Response | None
    second: Response | None
    left: bytes
    ending: str
    visits: list[Visit]

    @property
    def served(self) -> bool:
        return self.first is not None and self.first.complete and self.first.status not in (502, 504)

    @property
    def decision(self) -> tuple[object, ...]:
        """What must not depend on how the bytes were cut into pieces.

        A body that breaks is refused with 502 while nothing of the response has gone out, else by breaking
        the connection: which of the two depends on what arrived together.
        """
        if self.first is None or not self.first.complete:
            return ("refused",)
        if self.first.status == 502 and self.script.case.name.startswith(BREAKS_IN_BODY):
            return ("refused",)
        return self.first.status, self.first.body if self.served else b""


async def play_all() -> list[Answered]:
    """Every entry in every segmentation through a botproxy of its own."""
    scripts: dict[str, Script] = {}

    async def answer(request: Request, writer: asyncio.StreamWriter, _: Visit) -> bool:
        if request.target == "/case":
            return await scripts[request.values("x-forwarded-for")[0]].play(writer)
        writer.write(ANSWER_TO_NEXT)
        return True

    addresses = Addresses()
    for segmentation in SEGMENTATIONS:
        for case in load("response"):
            scripts[addresses.next()] = Script(case, segmentation)
    async with Origin(answer).listening() as origin:
        with front(origin.port) as behind:
            room = asyncio.Semaphore(AT_ONCE)

            async def ask(source: str, script: Script) -> Answered:
                async with room:
                    return await _ask(source, script, behind.port, behind.trust, origin)

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(*item)) for item in scripts.items()]
            return [task.result() for task in tasks]


async def _ask(source: str, script: Script, port: int, trust: ssl.SSLContext, origin: Origin) -> Answered:
    async with await Client.connect(port, trust, source) as client:

        def is_answered(received: bytes) -> bool:
            response, _ = read_response(received, script.method)
            return response is not None and response.complete

        await client.send([script.request])
        await client.wait_for(is_answered)
        # Behind a whole answer the bot may still be sending: what is too much must have left it.
        await script.over.wait()
        if client.ending is None:
            await client.send([NEXT])
        received = await client.wait_end()
        first, rest = read_response(received, script.method)
        second, left = read_response(rest, "GET")
        assert client.ending is not None
        return Answered(script, first, second, left, client.ending, await origin.wait_left(source))


def verdict(answered: Answered) -> list[str]:
    """All violations of one entry."""
    case = answered.script.case
    found = [f"not canonical toward the bot: {visit.fault}" for visit in answered.visits if visit.fault]
    if answered.first is not None and answered.first.status == 504:
        found.append("waited for instead of refused")
    if answered.left:
        found.append(f"{answered.left[:40]!r} behind the last answer")
    if case.expect == "reject":
        found += _rejected(answered)
    elif case.expect == "accept" and not answered.served:
        found.append(f"not served: {answered.first}")
    if answered.served:
        found += _as_meant(answered)
    if answered.first is not None and answered.first.complete:
        found += _next(answered)
    return found


def _rejected(answered: Answered) -> list[str]:
    first = answered.first
    if first is not None and first.complete:
        return [] if first.status == 502 else [f"served with {first.status}"]
    if not answered.script.case.name.startswith(BREAKS_IN_BODY):
        return [f"no 502: {first}, {answered.ending}"]
    return ["the client may take what it got for everything"] if answered.ending == "in order" else []


def _as_meant(answered: Answered) -> list[str]:
    first, case = answered.first, answered.script.case
    assert first is not None
    found = [
        f"{name} at the client" for name in case.oracle.get("client_must_not_have", ()) if first.values(name)
    ]
    try:
        meant = as_h11_reads(answered.script)
    except h11.RemoteProtocolError:
        meant = None
    if meant is not None and meant != (first.status, first.body):
        found.append(f"{first.status} {first.body!r} instead of {meant}")
    return found


def _next(answered: Answered) -> list[str]:
    """The second request gets the answer that the bot gave to it, if the first left it a connection."""
    first, second = answered.first, answered.second
    assert first is not None
    found = []
    if answered.ending != "in order":
        found.append(f"the connection ended {answered.ending}")
    if "close" in first.options:
        return [*found, "another answer behind the last"] if second is not None else found
    if second is None or (second.status, second.body) != (200, b"next"):
        found.append(f"the next request got {second}")
    used = [visit for visit in answered.visits if visit.requests and visit.requests[0].target == "/case"]
    must_close = answered.script.case.oracle.get("pool_after") == "close" or not answered.served
    if must_close and any(len(visit.requests) > 1 for visit in used):
        found.append("the connection to the bot was used again")
    return found


def as_h11_reads(script: Script) -> tuple[int, bytes] | None:
    """Status and body of the final response that h11, which is not ours, finds in the bot's bytes."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    fields = [("Host", "bot"), *(WEBSOCKET if "websocket" in script.case.oracle["req_method"] else [])]
    connection.send(h11.Request(method=script.method, target="/", headers=fields))
    connection.send(h11.EndOfMessage())
    connection.receive_data(script.case.raw)
    if script.case.ends:
        connection.receive_data(b"")
    status, body = 0, b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return status, body
        elif not isinstance(event, h11.InformationalResponse):
            return None


def judge(played: list[Answered]) -> dict[str, list[str]]:
    """Violations by case and segmentation."""
    violations = {}
    reference: dict[str, tuple[object, ...]] = {}
    for answered in played:
        try:
            found = verdict(answered)
        except NotStrictError as error:
            found = [str(error)]
        wanted = reference.setdefault(answered.script.case.name, answered.decision)
        if answered.decision != wanted:
            found.append(f"{answered.decision} instead of {wanted}")
        if found:
            violations[answered.script.name] = found
    return violations
