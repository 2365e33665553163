"""A new set reaches every worker in two phases, or nobody; whoever does not answer is replaced."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from botproxy.control.channel import Commit, Expect, Prepare, Prepared, Refused
from botproxy.keeper import probes, rollout
from botproxy.keeper.probes import Endpoint, Question, questions
from botproxy.keeper.rollout import Roller, Rollout
from botproxy.keeper.workers import Offer, Workers
from botproxy.tls.context import CertificateSet, Served
from tests import certs
from tests.certs import Authority, Issued
from tests.keeper import crew
from tests.keeper.crew import PATIENCE, Crew, Played, kept_memfds, offer

BRIEF = 1.0
"""Seconds that somebody who falls silent is waited for."""


@pytest.fixture(scope="module")
def old(ca: Authority) -> Issued:
    return ca.issue("a.test")


@pytest.fixture(scope="module")
def new(ca: Authority) -> Issued:
    return ca.issue("a.test")


class Scene:
    """A keeper's rollouts, and the workers of a test around it."""

    def __init__(self, workers: Workers, everybody: Crew, replaceable: bool) -> None:
        self.workers = workers
        self.crew = everybody
        self.replaceable = replaceable
        """Whether somebody replaces workers."""
        self.replaced: list[int] = []
        self.steps: list[str] = []
        """Phases, and when the set was written down."""
        self.between: Callable[[], None] = lambda: None
        self.shown_by_successors: Served | None = None
        self.endpoint: Endpoint | None = None
        self._leaving: list[asyncio.Future[None]] = []

    def hire(self, pid: int, shows: Served | None = None, *, listens: bool = True) -> Played:
        """A worker; `shows`: what its listener shows whatever it serves."""
        worker = self.crew.hire(pid, pid % 10)
        if listens:
            worker.listen(self.crew.socket(), shows=shows)
            self.endpoint = self.endpoint or self.crew.endpoint()
        return worker

    async def enrolled(self, pid: int, shows: Served | None = None, *, listens: bool = True) -> Played:
        worker = self.hire(pid, shows, listens=listens).join(self.workers)
        await asyncio.to_thread(worker.enrol)
        await self.until(lambda: self.workers.all_serve)
        return worker

    async def until(self, what: Callable[[], bool]) -> None:
        assert await self.workers.until(what, PATIENCE)

    async def roll(self, made: Offer, *asked: Issued) -> Rollout:
        loaded = CertificateSet.load(made.handed, strict=False)
        wanted = [question for each in asked for question in questions(loaded, each.certificate, "1.2")]
        roller = Roller(self.workers, self.endpoint, self._replace)
        done = await roller.run(made, wanted, self._persist, self.steps.append)
        if self._leaving:
            await asyncio.wait(self._leaving)
        return done

    async def confirm(self, asked: Issued) -> Rollout:
        def about(made: Offer) -> list[Question]:
            loaded = CertificateSet.load(made.handed, strict=False)
            return questions(loaded, asked.certificate, "1.2")

        done = await Roller(self.workers, self.endpoint, self._replace).confirm(about)
        if self._leaving:
            await asyncio.wait(self._leaving)
        return done

    async def _persist(self) -> None:
        self.steps.append("persist")
        self.between()

    def _replace(self, pid: int, why: str) -> None:
        """As the supervisor does: end it, and start another in its slot."""
        assert why
        self.replaced.append(pid)
        if not self.replaceable:
            return
        gone = next(worker for worker in self.crew.members if worker.pid == pid)
        self._leaving.append(asyncio.get_running_loop().run_in_executor(None, gone.leave))
        self.hire(pid + 100, self.shown_by_successors).work().join(self.workers)

    def is_settled(self, made: Offer, *gone: Played) -> None:
        """Everybody but `gone` serves `made`, and nothing but it is held open."""
        assert self.workers.current is made
        assert self.workers.all_serve
        assert [each.serving for each in self.crew.members if each not in gone] == [made.set] * len(
            self.workers.present
        )
        assert kept_memfds() == len(made.handed)


def tell(story: Callable[[Scene], Awaitable[None]], *first: Issued, replaceable: bool = True) -> None:
    crew.tell(lambda workers, everybody: story(Scene(workers, everybody, replaceable)), *first)


def hurry(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setattr(probes if name == "PATIENCE" else rollout, name, BRIEF)


# Two phases


def test_all_have_prepared_before_it_is_written_down_and_that_before_anybody_commits(
    old: Issued, new: Issued
):
    async def story(scene: Scene) -> None:
        first, second = [await scene.enrolled(pid) for pid in (70, 71)]
        scene.between = lambda: scene.steps.append(f"{first.has_mail()} {second.has_mail()}")
        scene.endpoint = None
        made = offer(new)
        rolling = asyncio.create_task(scene.roll(made, new))
        await asyncio.to_thread(first.prepare)
        await scene.until(lambda: scene.workers.present[0].has_answered(made.set))
        assert (scene.steps, first.has_mail()) == (["preparing"], False)
        await asyncio.to_thread(second.prepare)
        for worker in (first, second):
            await asyncio.to_thread(worker.commit)
        done = await rolling
        assert scene.steps == ["preparing", "persist", "False False", "committed", "verifying"]
        assert (done.result, done.reason) == ("unverified", "there is no listener that can be asked")
        assert done.seconds.keys() == {"preparing", "committing", "verifying"}
        scene.is_settled(made)

    tell(story, old)


def test_every_worker_is_seen_to_serve_it_over_the_listener(old: Issued, new: Issued, ca: Authority):
    async def story(scene: Scene) -> None:
        for pid in (70, 71):
            (await scene.enrolled(pid)).work()
        made = offer(new, old)
        done = await scene.roll(made, new)
        assert (done.result, done.reason, done.replaced) == ("active", "", 0)
        assert done.workers == tuple((each.pid, each.fingerprints) for each in scene.crew.members)
        assert all(any(isinstance(each, Expect) for each in worker.heard) for worker in scene.crew.members)
        scene.is_settled(made)

    tell(story, old)


def test_one_refusal_stops_it_for_all_and_nobody_commits(old: Issued, new: Issued):
    async def story(scene: Scene) -> None:
        willing, unwilling = [await scene.enrolled(pid) for pid in (70, 71)]
        willing.work()
        unwilling.work(refuse="EE_KEY_TOO_SMALL")
        before, made = scene.workers.current, offer(new)
        done = await scene.roll(made, new)
        assert (done.result, done.reason) == ("refused", "EE_KEY_TOO_SMALL")
        assert scene.steps == ["preparing"]
        assert not any(message == Commit(made.set) for message in willing.heard + unwilling.heard)
        assert scene.replaced == []
        await scene.until(lambda: kept_memfds() == 1)  # the other one may still be at it
        scene.is_settled(before)

    tell(story, old)


def test_without_a_worker_nothing_is_changed(old: Issued, new: Issued, monkeypatch: pytest.MonkeyPatch):
    hurry(monkeypatch, "PREPARE_PATIENCE")

    async def story(scene: Scene) -> None:
        before = scene.workers.current
        done = await scene.roll(offer(new), new)
        assert (done.result, scene.steps) == ("unanswered", ["preparing"])
        assert scene.workers.current is before
        assert kept_memfds() == 1

    tell(story, old)


# Those who come and go


@pytest.mark.parametrize("silent_from", [Prepare, Commit, Expect])
def test_a_worker_that_falls_silent_is_replaced_and_its_successor_serves_the_new_set(
    old: Issued, new: Issued, silent_from: type, monkeypatch: pytest.MonkeyPatch
):
    hurry(monkeypatch, "PREPARE_PATIENCE", "COMMIT_PATIENCE", "PATIENCE")

    async def story(scene: Scene) -> None:
        well, mute = await scene.enrolled(70), await scene.enrolled(71, listens=False)
        well.work()
        mute.work(mute_at=silent_from)
        made = offer(new)
        done = await scene.roll(made, new)
        assert scene.replaced == [71]
        assert (done.result, done.replaced) == ("active", 1)
        scene.is_settled(made, mute)
        assert [pid for pid, _ in done.workers] == [70, 171]

    tell(story, old)


def test_many_certificates_may_take_longer(old: Issued, new: Issued, monkeypatch: pytest.MonkeyPatch):
    hurry(monkeypatch, "PREPARE_PATIENCE")
    monkeypatch.setattr(rollout, "PREPARE_EACH", PATIENCE)

    async def story(scene: Scene) -> None:
        worker = await scene.enrolled(70, listens=False)
        made = offer(old, new)
        rolling = asyncio.create_task(scene.roll(made))
        await asyncio.to_thread(worker.take)
        await asyncio.wait([rolling], timeout=2 * BRIEF)
        assert not rolling.done()
        worker.say(Prepared(made.set))
        worker.work()
        assert (await rolling).result == "unverified"  # there is no listener
        assert scene.replaced == []
        scene.is_settled(made)

    tell(story, old)


def test_when_nobody_prepares_nothing_is_changed(old: Issued, new: Issued, monkeypatch: pytest.MonkeyPatch):
    hurry(monkeypatch, "PREPARE_PATIENCE")

    async def story(scene: Scene) -> None:
        mute = (await scene.enrolled(70)).work(mute_at=Prepare)
        before = scene.workers.current
        done = await scene.roll(offer(new), new)
        assert (done.result, scene.steps, scene.replaced) == ("unanswered", ["preparing"], [70])
        await scene.until(lambda: scene.workers.all_serve)
        scene.is_settled(before, mute)

    tell(story, old)


def test_a_silent_worker_that_nobody_replaces_holds_up_nothing_for_ever(
    old: Issued, new: Issued, monkeypatch: pytest.MonkeyPatch
):
    hurry(monkeypatch, "PREPARE_PATIENCE", "COMMIT_PATIENCE", "REPLACED_PATIENCE")

    async def story(scene: Scene) -> None:
        well, mute = [await scene.enrolled(pid) for pid in (70, 71)]
        well.work()
        mute.work(mute_at=Prepare)
        made = offer(new)
        done = await scene.roll(made, new)
        assert done.result == "unverified"
        assert set(scene.replaced) == {71}
        assert well.serving == made.set
        assert scene.workers.current is made
        assert kept_memfds() == 1

    tell(story, old, replaceable=False)


@pytest.mark.parametrize("has_prepared", [False, True])
def test_a_worker_that_dies_stops_nothing_and_nobody_waits_for_it(
    old: Issued, new: Issued, has_prepared: bool
):
    async def story(scene: Scene) -> None:
        well, dying = [await scene.enrolled(pid) for pid in (70, 71)]
        well.work()
        made = offer(new)
        if has_prepared:
            dying.work()
            scene.between = dying.leave
        rolling = asyncio.create_task(scene.roll(made, new))
        if not has_prepared:
            await asyncio.to_thread(dying.take)
            dying.leave()
        done = await rolling
        assert (done.result, done.replaced) == ("active", 0)
        assert done.seconds["preparing"] < rollout.PREPARE_PATIENCE
        assert [pid for pid, _ in done.workers] == [70]
        successor = scene.hire(171).work().join(scene.workers)
        await scene.until(lambda: len(scene.workers.present) == 2 and scene.workers.all_serve)
        assert successor.sets == [made.set]
        scene.is_settled(made, dying)

    tell(story, old)


def test_a_worker_that_comes_meanwhile_gets_the_current_set_and_then_the_new_one(old: Issued, new: Issued):
    async def story(scene: Scene) -> None:
        first = await scene.enrolled(70)
        before, made = scene.workers.current, offer(new)
        rolling = asyncio.create_task(scene.roll(made, new))
        await asyncio.to_thread(first.take)
        late = scene.hire(71).join(scene.workers)
        await asyncio.to_thread(late.enrol)
        await scene.until(lambda: scene.workers.present[1].serving == before.set)
        first.say(Prepared(made.set))
        for worker in (first, late):
            worker.work()
        done = await rolling
        assert done.result == "active"
        assert late.sets == [before.set, made.set]
        scene.is_settled(made)

    tell(story, old)


def test_a_worker_that_came_just_before_a_refused_set_serves_the_current_one(old: Issued, new: Issued):
    """It was told of both before it could answer, and only what it prepared last can be committed."""

    async def story(scene: Scene) -> None:
        unwilling = await scene.enrolled(70)
        before, made = scene.workers.current, offer(new)
        late = scene.hire(71).join(scene.workers)
        rolling = asyncio.create_task(scene.roll(made, new))
        await asyncio.to_thread(unwilling.take)
        late.work()
        await scene.until(lambda: scene.workers.present[1].has_answered(made.set))
        unwilling.say(Refused(made.set, "no"))
        unwilling.work()
        assert (await rolling).result == "refused"
        await scene.until(lambda: scene.workers.all_serve)
        scene.is_settled(before)

    tell(story, old)


# What the listener shows


@pytest.mark.parametrize("successor_is_right", [True, False])
def test_a_wrong_answer_is_mended_by_telling_again_then_by_replacing_and_at_last_all_go_back(
    old: Issued, new: Issued, successor_is_right: bool
):
    async def story(scene: Scene) -> None:
        wrong = certs.load(old).default
        scene.shown_by_successors = None if successor_is_right else wrong
        right, stuck = [(await scene.enrolled(pid, shows)).work() for pid, shows in ((70, None), (71, wrong))]
        before, made = scene.workers.current, offer(new)
        done = await scene.roll(made, new)
        assert scene.replaced == [71]
        assert stuck.sets.count(made.set) > 1
        if successor_is_right:
            assert (done.result, done.replaced) == ("active", 1)
            scene.is_settled(made, stuck)
        else:
            assert done.result == "rolled_back"
            assert old.fingerprint in done.reason
            scene.is_settled(before, stuck)
        assert right.sets[1] == made.set

    tell(story, old)


def test_a_listener_that_is_not_reached_is_no_reason_to_go_back(
    old: Issued, new: Issued, monkeypatch: pytest.MonkeyPatch
):
    hurry(monkeypatch, "PATIENCE")

    async def story(scene: Scene) -> None:
        worker = (await scene.enrolled(70)).work()
        vacant = scene.crew.socket()
        assert scene.endpoint is not None
        scene.endpoint = Endpoint(vacant.family, ("127.0.0.2", scene.crew.port), False, False)
        made = offer(new)
        done = await scene.roll(made, new)
        assert (done.result, scene.replaced) == ("unverified", [])
        assert "could be asked" in done.reason
        scene.is_settled(made)
        assert worker.sets[-1] == made.set

    tell(story, old)


@pytest.mark.parametrize("alone", [True, False])
def test_what_a_foreign_program_shows_on_the_port_is_no_reason_to_go_back(
    old: Issued, new: Issued, alone: bool, monkeypatch: pytest.MonkeyPatch
):
    if alone:
        hurry(monkeypatch, "PATIENCE")

    async def story(scene: Scene) -> None:
        worker = (await scene.enrolled(70)).work()
        stranger = scene.hire(666, certs.load(old).default)
        if alone:
            assert worker.listener is not None
            worker.listener.shutdown(socket.SHUT_RDWR)
        made = offer(new)
        done = await scene.roll(made, new)
        assert (done.result, scene.replaced) == ("unverified" if alone else "active", [])
        assert ("another program answers on the same port" in done.reason) is alone
        scene.is_settled(made, stranger)

    tell(story, old)


# From the start


def test_what_is_served_already_is_confirmed_over_the_listener(old: Issued):
    async def story(scene: Scene) -> None:
        for pid in (70, 71):
            (await scene.enrolled(pid)).work()
        done = await scene.confirm(old)
        assert (done.result, done.reason, done.replaced) == ("active", "", 0)
        assert set(done.seconds) == {"committing", "verifying"}
        assert done.workers == ((70, (old.fingerprint,)), (71, (old.fingerprint,)))

    tell(story, old)


@pytest.mark.parametrize("mended", [True, False])
def test_a_wrong_answer_at_the_start_is_mended_and_nobody_goes_back(old: Issued, new: Issued, mended: bool):
    wrong = certs.load(new).default

    async def story(scene: Scene) -> None:
        (await scene.enrolled(70, wrong)).work()
        scene.shown_by_successors = None if mended else wrong
        done = await scene.confirm(old)
        assert done.result == ("active" if mended else "unverified")
        assert bool(done.reason) is not mended
        assert scene.replaced == [70]
        scene.is_settled(scene.workers.current, scene.crew.members[0])

    tell(story, old)
