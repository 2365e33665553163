"""The worker's end of the channel: a whole set is proven and served, or nothing changes."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

import pytest

from botproxy.config.schema import Tls
from botproxy.control import channel, packets
from botproxy.control.channel import Commit, Expect, Expecting, Met, Prepare, Prepared, Refused, Serving
from botproxy.server.handover import Handover
from botproxy.tls.context import Handed, hand, listener_context, sealed_memfd
from tests import certs
from tests.certs import Authority, Issued
from tests.keeper.crew import kept_memfds

PATIENCE = 20.0


class Told:
    """A worker's certificates, and the keeper that tells of them."""

    def __init__(self, strict_sni: bool) -> None:
        self.sock, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        worker.setblocking(False)
        self.sock.settimeout(PATIENCE)
        self.begun = 0
        self.stopped = False
        loop = asyncio.get_running_loop()
        self.handover = Handover(worker, listener_context(Tls()), strict_sni, loop, self._begin)
        self.handover.start()

    def _begin(self) -> None:
        self.begun += 1

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.handover.stop()

    async def hear(self) -> channel.ToKeeper | None:
        return await asyncio.to_thread(channel.from_worker, self.sock)

    def hand(self, set_: str, *sites: Issued | Handed, indexes: Sequence[int] = (), count: int = 0) -> None:
        """Say `Prepare` for each; `indexes` and `count` where they are not the right ones."""
        for position, site in enumerate(sites):
            handed = hand(site.certificate) if isinstance(site, Issued) else site
            index = indexes[position] if indexes else position
            packets.send(self.sock, Prepare(set_, index, count or len(sites), handed))
            os.close(handed.fd)

    async def serve(self, set_: str, *sites: Issued) -> None:
        self.hand(set_, *sites)
        assert await self.hear() == Prepared(set_)
        packets.send(self.sock, Commit(set_))
        assert await self.hear() == Serving(set_, tuple(sorted({site.fingerprint for site in sites})))
        assert kept_memfds() == 0

    async def says_nothing_more(self) -> None:
        """Whatever was said is done when the next question is answered."""
        packets.send(self.sock, Expect((1,)))
        assert await self.hear() == Expecting((1,))

    def shows(self, name: str | None) -> frozenset[str]:
        served = self.handover.select(name)
        return served.fingerprints if served is not None else frozenset()


def tell(story: Callable[[Told], Awaitable[None]], *, strict_sni: bool = False) -> None:
    async def main() -> None:
        told = Told(strict_sni)
        try:
            await asyncio.wait_for(story(told), PATIENCE)
        finally:
            told.stop()
            told.sock.close()

    asyncio.run(main())
    assert kept_memfds() == 0


@pytest.fixture(scope="module")
def one(ca: Authority) -> Issued:
    return ca.issue("a.test")


@pytest.fixture(scope="module")
def two(ca: Authority) -> Issued:
    return ca.issue("b.test")


def broken() -> Handed:
    """A certificate that OpenSSL cannot load."""
    return Handed(("a.test",), "ecdsa", "0" * 64, hsts=False, fd=sealed_memfd(b"no PEM"))


def test_nothing_is_served_before_it_is_committed_and_then_to_everybody(one: Issued, two: Issued):
    async def story(told: Told) -> None:
        told.hand("first", one, two)
        assert await told.hear() == Prepared("first")
        packets.send(told.sock, Commit("another"))
        await told.says_nothing_more()
        assert (told.begun, told.shows("a.test"), told.handover.serves("a.test")) == (0, frozenset(), False)
        packets.send(told.sock, Commit("first"))
        assert await told.hear() == Serving("first", tuple(sorted([one.fingerprint, two.fingerprint])))
        assert told.begun == 1
        assert told.shows("b.test") == {two.fingerprint}
        assert told.shows(None) == {one.fingerprint}
        assert told.handover.serves("a.test")
        assert not told.handover.serves("c.test")

    tell(story)


def test_strictness_is_that_of_the_configuration(one: Issued):
    async def story(told: Told) -> None:
        await told.serve("first", one)
        assert told.shows("a.test") == {one.fingerprint}
        assert told.handover.select(None) is None

    tell(story, strict_sni=True)


def test_the_next_set_takes_the_place_of_the_first_and_the_worker_begins_only_once(one: Issued, two: Issued):
    async def story(told: Told) -> None:
        await told.serve("first", one)
        told.hand("second", two)
        assert await told.hear() == Prepared("second")
        assert told.shows(None) == {one.fingerprint}
        packets.send(told.sock, Commit("second"))
        assert await told.hear() == Serving("second", (two.fingerprint,))
        assert told.shows(None) == {two.fingerprint}
        assert told.begun == 1

    tell(story)


@contextmanager
def handshakes() -> Iterator[Callable[[], int]]:
    """How often this thread asks OpenSSL to go on with one."""
    steps = 0

    def count(_: FrameType, event: str, called: object) -> None:
        nonlocal steps
        if event == "c_call" and getattr(called, "__name__", "") == "do_handshake":
            steps += 1

    sys.setprofile(count)
    try:
        yield lambda: steps
    finally:
        sys.setprofile(None)


def test_only_what_is_new_is_proven_however_many_there_are(ca: Authority, one: Issued, two: Issued):
    """Clients wait meanwhile, and each renewal of one of many brings all of them again."""

    async def renewal(others: int) -> int:
        told = Told(strict_sni=False)
        sites = [ca.issue(f"{number}.test") for number in range(others)]
        try:
            await told.serve("first", *sites, one)
            kept = [told.handover.select(f"{number}.test") for number in range(others)]
            with handshakes() as steps:
                await told.serve("second", *sites, two)
                needed = steps()
            assert told.shows("b.test") == {two.fingerprint}
            again = [told.handover.select(f"{number}.test") for number in range(others)]
            assert all(now is before for now, before in zip(again, kept, strict=True))
            with handshakes() as steps:
                await told.serve("second", *sites, two)  # a keeper that was replaced says it again
                assert steps() == 0
        finally:
            told.stop()
            told.sock.close()
        return needed

    counts = [asyncio.run(renewal(others)) for others in (1, 8)]
    assert counts[0] == counts[1] > 0


def test_what_differs_in_anything_is_new(ca: Authority):
    """The same leaf with other intermediates, or beside another one."""
    ecdsa, rsa = ca.issue("a.test"), ca.issue("a.test", key=certs.rsa_key())

    async def story(told: Told) -> None:
        seen = []
        for number, sites in enumerate(([ecdsa], [ecdsa.with_chain(ecdsa.leaf)], [ecdsa, rsa], [ecdsa])):
            await told.serve(str(number), *sites)
            served = told.handover.select("a.test")
            assert served is not None
            assert served.fingerprints == {site.fingerprint for site in sites}
            seen.append(served.context)
        assert len(set(map(id, seen))) == len(seen)

    tell(story)


def test_what_is_known_and_said_to_be_something_else_is_refused(one: Issued, two: Issued):
    async def story(told: Told) -> None:
        await told.serve("first", one, two)
        told.hand("second", one, replace(hand(two.certificate), fingerprint="0" * 64))
        assert isinstance(await told.hear(), Refused)
        assert told.shows("b.test") == {two.fingerprint}

    tell(story)


@pytest.mark.parametrize("kind", ["unloadable", "not what it says"])
def test_a_set_that_does_not_work_is_refused_with_the_reason_and_the_old_one_is_kept(
    one: Issued, two: Issued, kind: str
):
    async def story(told: Told) -> None:
        await told.serve("first", one)
        bad = broken() if kind == "unloadable" else replace(hand(two.certificate), fingerprint="0" * 64)
        told.hand("second", bad, two)
        answer = await told.hear()
        assert isinstance(answer, Refused)
        assert (answer.set, bool(answer.reason)) == ("second", True)
        packets.send(told.sock, Commit("second"))
        await told.says_nothing_more()
        assert told.shows(None) == {one.fingerprint}
        await told.serve("third", two)

    tell(story)


@pytest.mark.parametrize("half", [True, False])
def test_a_commit_is_for_the_set_that_was_prepared_and_for_no_other(one: Issued, two: Issued, half: bool):
    """Nothing is served under the name of a set that did not come whole, or was refused."""

    async def story(told: Told) -> None:
        await told.serve("first", one)
        told.hand("second", two)
        assert await told.hear() == Prepared("second")
        if half:
            told.hand("third", one, count=2)
        else:
            told.hand("third", broken())
            assert isinstance(await told.hear(), Refused)
        packets.send(told.sock, Commit("third"))
        await told.says_nothing_more()
        assert told.shows(None) == {one.fingerprint}

    tell(story)


@pytest.mark.parametrize(
    ("sets", "indexes"),
    [
        (["second"], [1]),
        (["second", "second"], [0, 2]),
        (["second", "second"], [0, 0, 0]),
        (["other", "second"], [0, 1]),
    ],
)
def test_certificates_out_of_order_are_refused_and_the_next_set_is_taken(
    one: Issued, two: Issued, sets: list[str], indexes: list[int]
):
    async def story(told: Told) -> None:
        await told.serve("first", one)
        for name, index in zip(sets, indexes, strict=False):
            told.hand(name, two, indexes=[index], count=3)
        if indexes != [0, 0, 0]:
            assert await told.hear() == Refused("second", "certificates out of order")
            assert kept_memfds() == 0
        await told.says_nothing_more()
        assert told.shows(None) == {one.fingerprint}
        await told.serve("third", two)

    tell(story)


def test_the_first_certificate_of_a_set_begins_anew(one: Issued, two: Issued):
    """A keeper that died in the middle of a set is followed by one that begins at the first."""

    async def story(told: Told) -> None:
        told.hand("first", two, count=3)
        await told.serve("first", one, two)

    tell(story)


def test_what_is_no_message_is_logged_and_the_next_one_is_heard(
    one: Issued, caplog: pytest.LogCaptureFixture
):
    async def story(told: Told) -> None:
        told.sock.send(b"nonsense")
        await told.serve("first", one)

    tell(story)
    assert "bad message from the keeper" in caplog.text


# Probes


def test_probes_are_those_that_were_told_of_last_and_each_is_met_once(one: Issued):
    async def story(told: Told) -> None:
        for ports in ((5000,), (5001, 5002), ()):
            packets.send(told.sock, Expect(ports))
            assert await told.hear() == Expecting(ports)
            assert told.handover.probes == set(ports)
        packets.send(told.sock, Expect((5001, 5002)))
        assert await told.hear() == Expecting((5001, 5002))
        told.handover.met(5001)
        assert await told.hear() == Met(5001)
        assert told.handover.probes == {5002}

    tell(story)


def test_what_a_busy_keeper_does_not_take_it_hears_later_and_in_order():
    async def story(told: Told) -> None:
        met = range(1, 2000)  # more than the socket takes
        for port in met:
            told.handover.met(port)
        assert [await told.hear() for _ in met] == [Met(port) for port in met]

    tell(story)


# The end


def test_after_the_stop_the_channel_is_closed_and_what_was_served_is_served_on(one: Issued, two: Issued):
    async def story(told: Told) -> None:
        await told.serve("first", one)
        told.hand("second", two, count=2)
        await told.says_nothing_more()
        told.stop()
        with pytest.raises(EOFError):
            await told.hear()
        assert kept_memfds() == 0
        told.handover.met(5000)
        assert told.shows("a.test") == {one.fingerprint}

    tell(story)


def test_when_nobody_holds_the_other_end_any_more_it_serves_on(one: Issued):
    async def story(told: Told) -> None:
        await told.serve("first", one)
        told.sock.close()
        for _ in range(10):
            await asyncio.sleep(0)
        told.handover.met(5000)
        assert told.shows("a.test") == {one.fingerprint}

    tell(story)
