"""The keeper's conversations: everybody comes to the current set, and nobody waits for one who is slow."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest

from botproxy.control.channel import Expect, Expecting, Met, Prepare, Prepared, Refused, Serving
from botproxy.control.packets import PacketError
from botproxy.keeper.workers import Workers
from tests.certs import Authority, Issued
from tests.keeper.crew import PATIENCE, Crew, kept_memfds, offer, tell


@pytest.fixture(scope="module")
def one(ca: Authority) -> Issued:
    return ca.issue("a.test")


@pytest.fixture(scope="module")
def two(ca: Authority) -> Issued:
    return ca.issue("a.test")


@pytest.fixture(scope="module")
def huge(ca: Authority) -> Issued:
    """Ten of these are more than a socket takes."""
    return ca.issue("a.test", *many_names(300))


def many_names(count: int) -> list[str]:
    return [f"{number:04}.{'x' * 60}.{'y' * 60}.{'z' * 60}.test" for number in range(count)]


async def until(workers: Workers, what: Callable[[], bool]) -> None:
    assert await workers.until(what, PATIENCE)


def test_everybody_is_brought_to_the_current_set(one: Issued, two: Issued):
    async def story(workers: Workers, everybody: Crew) -> None:
        assert not workers.all_serve
        for pid, slot in ((71, 1), (70, 0)):
            worker = everybody.hire(pid, slot).join(workers)
            assert await asyncio.to_thread(worker.prepare) == workers.current.set
            await until(workers, worker.has_mail)
            assert not workers.all_serve
            await asyncio.to_thread(worker.commit)
            await until(workers, lambda: workers.all_serve)
            assert workers.serves_all(2) == (slot == 0), "a slot without a worker serves nothing"
        assert [(each.slot, each.pid, each.serving) for each in workers.present] == [
            (0, 70, workers.current.set),
            (1, 71, workers.current.set),
        ]
        assert workers.present[0].fingerprints == everybody.members[0].fingerprints

    tell(story, one, two)


def test_nothing_is_committed_that_was_not_prepared(one: Issued):
    async def story(workers: Workers, everybody: Crew) -> None:
        worker = everybody.hire(70).join(workers)
        await asyncio.to_thread(worker.take)
        worker.say(Prepared("another"))
        await until(workers, lambda: workers.present[0].prepared == "another")
        assert not worker.has_mail()

    tell(story, one)


def test_two_workers_of_a_slot_are_two_workers(one: Issued):
    """One that takes over and one that drains: what is meant for one does not reach the other."""

    async def story(workers: Workers, everybody: Crew) -> None:
        old, new = (everybody.hire(pid).join(workers) for pid in (70, 71))
        await asyncio.to_thread(old.enrol)
        await until(workers, lambda: any(each.serving for each in workers.present))
        assert not workers.all_serve
        await asyncio.to_thread(new.enrol)
        await until(workers, lambda: workers.all_serve)
        old.leave()
        await until(workers, lambda: [each.pid for each in workers.present] == [71])
        assert workers.all_serve
        new.leave()
        await until(workers, lambda: not workers.present)
        assert not workers.all_serve

    tell(story, one)


def test_a_newcomer_takes_nothing_from_a_slot_that_is_served(one: Issued, two: Issued):
    """While new ticket keys come in every slot has one that serves and one that does not yet."""

    async def story(workers: Workers, everybody: Crew) -> None:
        old = [everybody.hire(70 + slot, slot).join(workers) for slot in (0, 1)]
        for worker in old:
            assert not workers.serves_all(2)
            await asyncio.to_thread(worker.enrol)
        await until(workers, lambda: workers.serves_all(2))
        new = [everybody.hire(80 + slot, slot).join(workers) for slot in (0, 1)]
        assert workers.serves_all(2)
        assert not workers.all_serve, "a rollout waits for everybody"
        old[1].leave()
        await until(workers, lambda: len(workers.present) == 3)
        assert not workers.serves_all(2), "the newcomer of this slot serves nothing yet"
        await asyncio.to_thread(new[1].enrol)
        await until(workers, lambda: workers.serves_all(2))
        assert not workers.serves_all(3)
        before = workers.current
        workers.make_current(offer(two))
        workers.withdraw(before)
        assert not workers.serves_all(2), "what they serve is not the current set"

    tell(story, one)


def test_the_end_of_an_earlier_process_with_the_same_number_is_not_the_end_of_the_later_one(one: Issued):
    async def story(workers: Workers, everybody: Crew) -> None:
        earlier = everybody.hire(70).join(workers)
        later = everybody.hire(70).join(workers)
        earlier.leave()
        await asyncio.to_thread(later.enrol)
        await until(workers, lambda: workers.all_serve)
        assert [each.pid for each in workers.present] == [70]

    tell(story, one)


def test_a_worker_that_says_it_serves_something_else_is_not_counted(
    one: Issued, caplog: pytest.LogCaptureFixture
):
    async def story(workers: Workers, everybody: Crew) -> None:
        worker = everybody.hire(70).join(workers)
        worker.say(Serving(workers.current.set, ("f" * 64,)))
        await until(workers, lambda: "a worker serves other certificates" in caplog.text)
        assert not workers.all_serve

    tell(story, one)


def test_a_worker_that_takes_over_too_late_is_brought_back(one: Issued, two: Issued):
    """A set was committed and given up; whoever was slow to hear of it serves it all the same."""

    async def story(workers: Workers, everybody: Crew) -> None:
        worker = everybody.hire(70).join(workers)
        before, given_up = workers.current, offer(two)
        await asyncio.to_thread(worker.enrol)
        await until(workers, lambda: workers.all_serve)
        workers.offer(given_up)
        await asyncio.to_thread(worker.prepare)
        await until(workers, lambda: workers.present[0].prepared == given_up.set)
        workers.make_current(given_up)
        workers.make_current(before)
        workers.withdraw(given_up)
        await asyncio.to_thread(worker.commit)
        assert worker.fingerprints == (two.fingerprint,)
        await asyncio.to_thread(worker.enrol)
        await until(workers, lambda: workers.all_serve)
        assert worker.fingerprints == (one.fingerprint,)

    tell(story, one)


def test_a_refusal_is_an_error_in_the_log(one: Issued, caplog: pytest.LogCaptureFixture):
    async def story(workers: Workers, everybody: Crew) -> None:
        worker = everybody.hire(70, 3).join(workers)
        worker.say(Refused(workers.current.set, "x" * 1000))
        await until(workers, lambda: workers.present[0].has_answered(workers.current.set))

    tell(story, one)
    [record] = caplog.records
    assert record.levelname == "ERROR"
    data = record.__dict__["data"]
    assert (data["slot"], data["pid"], data["why"]) == (3, 70, "x" * 500)


def test_what_is_no_message_is_logged_and_the_next_one_is_heard(
    one: Issued, caplog: pytest.LogCaptureFixture
):
    async def story(workers: Workers, everybody: Crew) -> None:
        worker = everybody.hire(70).join(workers)
        worker.sock.send(b"nonsense")
        await asyncio.to_thread(worker.enrol)
        await until(workers, lambda: workers.all_serve)

    tell(story, one)
    assert "bad message from a worker" in caplog.text


def test_a_worker_that_does_not_read_delays_nobody_and_gets_all_when_it_does(huge: Issued):
    async def story(workers: Workers, everybody: Crew) -> None:
        slow, quick = (everybody.hire(pid).join(workers) for pid in (70, 71))
        await asyncio.to_thread(quick.enrol)
        await until(workers, lambda: bool(workers.present[1].serving))
        await asyncio.to_thread(slow.enrol)
        await until(workers, lambda: workers.all_serve)

    tell(story, *[huge] * 10)


def test_nothing_more_of_a_withdrawn_offer_is_sent(huge: Issued, one: Issued):
    """Its descriptors are closed by then: another file could have their numbers."""

    async def story(workers: Workers, everybody: Crew) -> None:
        worker = everybody.hire(70).join(workers)
        await asyncio.to_thread(worker.enrol)
        withdrawn = offer(*[huge] * 10)
        workers.offer(withdrawn)
        workers.withdraw(withdrawn)
        workers.offer(workers.current)

        def rest() -> list[str]:
            sets: list[str] = []
            while not sets or sets[-1] != workers.current.set:
                message = worker.hear()
                assert isinstance(message, Prepare)
                os.close(message.certificate.fd)
                sets.append(message.set)
            return sets

        sets = await asyncio.to_thread(rest)
        assert 0 < sets.count(withdrawn.set) < 10

    tell(story, one)


def test_who_has_prepared_the_new_set_is_told_to_serve_it_and_who_has_not_gets_it(one: Issued, two: Issued):
    async def story(workers: Workers, everybody: Crew) -> None:
        first, second, third = (everybody.hire(pid, pid).join(workers) for pid in (70, 71, 72))
        for worker in everybody.members:
            await asyncio.to_thread(worker.enrol)
        await until(workers, lambda: workers.all_serve)
        before, new = workers.current, offer(two)
        workers.offer(new)
        await asyncio.to_thread(first.prepare)
        await asyncio.to_thread(second.take)
        second.say(Refused(new.set, "not yet"))
        await until(workers, lambda: all(each.has_answered(new.set) for each in workers.present[:2]))
        workers.make_current(new)
        workers.withdraw(before)
        await asyncio.to_thread(first.commit)
        await asyncio.to_thread(second.enrol)
        await asyncio.to_thread(third.prepare)  # twice: it had not answered the first time
        await asyncio.to_thread(third.enrol)
        await until(workers, lambda: workers.all_serve)
        assert {each.serving for each in everybody.members} == {new.set}
        late = everybody.hire(73, 73).join(workers)
        assert await asyncio.to_thread(late.enrol) == new.set

    tell(story, one)


@pytest.mark.parametrize("refuses", [False, True])
def test_who_is_offered_a_set_again_has_to_answer_again(one: Issued, two: Issued, refuses: bool):
    async def story(workers: Workers, everybody: Crew) -> None:
        worker = everybody.hire(70).join(workers)
        await asyncio.to_thread(worker.enrol)
        again = offer(two)
        for _ in range(2):
            workers.offer(again)
            assert not workers.present[0].has_answered(again.set)
            await asyncio.to_thread(worker.take)
            worker.say(Refused(again.set, "no") if refuses else Prepared(again.set))
            await until(workers, lambda: workers.present[0].has_answered(again.set))
        workers.withdraw(again)

    tell(story, one)


def test_everybody_is_told_of_probes_and_who_met_one_is_known(one: Issued):
    async def story(workers: Workers, everybody: Crew) -> None:
        for pid in (70, 71):
            worker = everybody.hire(pid, pid).join(workers)
            await asyncio.to_thread(worker.enrol)
        first, second = everybody.members
        workers.expect((5000, 5001))
        for worker in everybody.members:
            assert await asyncio.to_thread(worker.hear) == Expect((5000, 5001))
            worker.say(Expecting((5000, 5001)))
        second.say(Met(5000))
        first.say(Met(5001))
        await until(workers, lambda: workers.met == {5000: 71, 5001: 70})
        assert [each.expecting for each in workers.present] == [(5000, 5001)] * 2
        workers.expect(())
        assert workers.met == {}

    tell(story, one)


def test_waiting_ends_when_it_has_happened_and_when_it_has_not_in_time(one: Issued):
    async def story(workers: Workers, everybody: Crew) -> None:
        assert not await workers.until(lambda: workers.all_serve, 0.05)
        everybody.hire(70).work().join(workers)
        await until(workers, lambda: workers.all_serve)

    tell(story, one)


def test_at_the_end_every_channel_is_closed(one: Issued):
    async def story(workers: Workers, everybody: Crew) -> None:
        worker = everybody.hire(70).join(workers)
        await asyncio.to_thread(worker.enrol)
        worker.keepers_end.close()  # the supervisor's copy
        workers.close()
        with pytest.raises(EOFError):
            worker.hear()
        workers.current = offer(one)  # for the end of the story, which closes it again

    tell(story, one)


# Offers


def test_equal_sets_have_equal_names_and_others_have_others(ca: Authority, one: Issued, two: Issued):
    shorter = one.with_chain(one.leaf)
    names = []
    for issued in ((one, two), (one, two), (two, one), (one,), (shorter,)):
        made = offer(*issued)
        names.append(made.set)
        made.close()
    assert names[0] == names[1]
    assert len(set(names)) == 4


def test_a_certificate_with_too_many_names_for_a_message_is_refused_and_nothing_stays_open(ca: Authority):
    before = kept_memfds()
    with pytest.raises(PacketError, match="names too many hosts"):
        offer(ca.issue("a.test"), ca.issue("a.test", *many_names(700)))
    assert kept_memfds() == before


def test_an_offer_says_which_certificates_are_in_it(one: Issued, two: Issued):
    made = offer(one, two)
    assert made.fingerprints == {each.fingerprint for each in (one, two)}
    made.close()
