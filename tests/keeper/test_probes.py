"""What is asked of the listener, and what an answer, a wrong one and none at all mean; over real sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import pytest

from botproxy.control.channel import Expect
from botproxy.keeper import probes
from botproxy.keeper.probes import Answers, Endpoint, Question, ask_all, questions
from botproxy.keeper.workers import Workers
from botproxy.tls.proof import shake
from tests import certs
from tests.certs import Authority, Issued
from tests.keeper.crew import PATIENCE, Crew, Played, tell

BRIEF = 0.3


@pytest.fixture(scope="module")
def site(ca: Authority) -> Issued:
    return ca.issue("a.test")


@pytest.fixture(scope="module")
def other(ca: Authority) -> Issued:
    return ca.issue("a.test")


# Questions


def asked(*sites: Issued, about: int, min_version: str = "1.2", strict: bool = False) -> list[Question]:
    return questions(certs.load(*sites, strict=strict), sites[about].certificate, min_version)


@pytest.mark.parametrize(
    ("names", "about", "strict", "name"),
    [
        ([("a.test",)], 0, True, "a.test"),
        ([("*.b.test",)], 0, True, "botproxy-probe.b.test"),
        ([("a.test",), ("*.b.test",)], 1, True, "botproxy-probe.b.test"),
        ([("a.test",), ("a.test", "c.test")], 1, True, "c.test"),
        ([("127.0.0.1", "::1")], 0, False, None),
        ([("a.test", "127.0.0.1")], 0, True, "a.test"),
    ],
)
def test_it_is_asked_for_by_a_name_under_which_clients_get_it(
    ca: Authority, names: list[tuple[str, ...]], about: int, strict: bool, name: str | None
):
    sites = [ca.issue(*each) for each in names]
    [question] = asked(*sites, about=about, strict=strict)
    assert question.name == name
    assert question.right == {sites[about].fingerprint}


@pytest.mark.parametrize(
    ("names", "about", "strict"),
    [
        ([("a.test", "b.test"), ("b.test",)], 1, False),
        ([("*.b.test",), ("*.b.test",)], 1, False),
        ([("a.test",), ("127.0.0.1",)], 1, False),
        ([("127.0.0.1",)], 0, True),
    ],
)
def test_nothing_is_asked_about_what_no_client_ever_gets(
    ca: Authority, names: list[tuple[str, ...]], about: int, strict: bool
):
    assert asked(*(ca.issue(*each) for each in names), about=about, strict=strict) == []


@pytest.mark.parametrize("about", [0, 1])
def test_of_two_key_types_the_one_in_question_is_asked_for(ca: Authority, about: int):
    sites = certs.dual(ca)
    [question] = asked(*sites, about=about)
    context = certs.load(*sites).exact["a.test"].context
    assert question.right == {sites[about].fingerprint}
    assert shake(context, question.context, question.name) == sites[about].fingerprint


def test_where_a_client_cannot_choose_the_key_type_each_of_them_is_right(ca: Authority):
    sites = certs.dual(ca)
    [question] = asked(*sites, about=1, min_version="1.3")
    context = certs.load(*sites).exact["a.test"].context
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    assert question.right == {site.fingerprint for site in sites}
    assert shake(context, question.context, question.name) in question.right


# Answers


def about(site: Issued) -> Question:
    [question] = asked(site, about=0)
    return question


async def employed(
    workers: Workers, everybody: Crew, pid: int, *, listens: bool = True, **how: Any
) -> Played:
    """A worker that serves, and whose listener shows something."""
    worker = everybody.hire(pid, pid).join(workers)
    await asyncio.to_thread(worker.enrol)
    assert await workers.until(lambda: workers.all_serve, PATIENCE)
    return worker.listen(everybody.socket(), **how).work() if listens else worker.work()


@pytest.mark.parametrize("proxy_protocol", [False, True])
def test_every_worker_is_asked_until_it_has_answered(site: Issued, ca: Authority, proxy_protocol: bool):
    second = ca.issue("b.test")

    async def story(workers: Workers, everybody: Crew) -> None:
        for pid in (70, 71):
            await employed(workers, everybody, pid, proxy_protocol=proxy_protocol)
        late = await employed(workers, everybody, 72, listens=False)

        def listen_at_last() -> None:
            late.wait_for(lambda: sum(isinstance(message, Expect) for message in late.heard) > 1)
            late.listen(everybody.socket(), proxy_protocol=proxy_protocol)

        listening = asyncio.create_task(asyncio.to_thread(listen_at_last))
        endpoint = everybody.endpoint(proxy_protocol=proxy_protocol)
        answers = await ask_all(endpoint, asked(site, second, about=1), workers)
        assert answers == Answers(frozenset({70, 71, 72}), {}, is_foreign=False, is_reachable=True)
        await listening
        assert await workers.until(lambda: all(each.expecting == () for each in workers.present), PATIENCE)
        assert all(worker.heard[-1] == Expect(()) for worker in everybody.members)

    tell(story, site, second)


def test_a_worker_that_shows_something_else_is_named_with_it(site: Issued, other: Issued):
    async def story(workers: Workers, everybody: Crew) -> None:
        await employed(workers, everybody, 70)
        await employed(workers, everybody, 71, shows=certs.load(other).default)
        answers = await ask_all(everybody.endpoint(), [about(site)], workers)
        assert answers.wrong == {71: other.fingerprint}
        assert 71 not in answers.right
        assert not answers.is_foreign

    tell(story, site)


def test_a_worker_that_refuses_the_handshake_is_named_with_the_reason(site: Issued):
    async def story(workers: Workers, everybody: Crew) -> None:
        worker = await employed(workers, everybody, 70)
        worker.current = None
        answers = await ask_all(everybody.endpoint(), [about(site)], workers)
        assert answers.right == set()
        assert "unrecognized_name" in answers.wrong[70]

    tell(story, site)


@pytest.mark.parametrize("right_first", [True, False])
def test_only_who_answers_every_question_rightly_is_right(site: Issued, ca: Authority, right_first: bool):
    async def story(workers: Workers, everybody: Crew) -> None:
        await employed(workers, everybody, 70, shows=certs.load(site).default)
        both = sorted([about(site), about(ca.issue("b.test"))], key=lambda q: q.name == "a.test")
        answers = await ask_all(everybody.endpoint(), both[:: -1 if right_first else 1], workers)
        assert answers.right == frozenset()
        assert answers.wrong == {70: site.fingerprint}

    tell(story, site)


def test_where_nothing_is_asked_everybody_is_right(site: Issued):
    async def story(workers: Workers, everybody: Crew) -> None:
        await employed(workers, everybody, 70, listens=False)
        answers = await ask_all(Endpoint(socket.AF_INET, ("127.0.0.1", 1), False, False), [], workers)
        assert answers == Answers(frozenset({70}), {}, is_foreign=False, is_reachable=True)

    tell(story, site)


@pytest.mark.parametrize("shared", [True, False])
def test_of_a_shared_socket_one_answer_is_enough(site: Issued, shared: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probes, "PATIENCE", BRIEF)

    async def story(workers: Workers, everybody: Crew) -> None:
        await employed(workers, everybody, 70)
        await employed(workers, everybody, 71, listens=False)
        answers = await ask_all(everybody.endpoint(shared=shared), [about(site)], workers)
        assert answers.right == ({70, 71} if shared else {70})
        assert answers.wrong == {}

    tell(story, site)


@pytest.mark.parametrize("listener", ["closed", "silent", "hangs up"])
def test_a_listener_that_is_not_reached_proves_nothing(
    site: Issued, listener: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(probes, "PATIENCE", BRIEF)
    monkeypatch.setattr(probes, "ONE_HANDSHAKE", BRIEF)

    async def story(workers: Workers, everybody: Crew) -> None:
        worker = await employed(workers, everybody, 70, listens=False)
        sock = everybody.socket()
        if listener == "closed":
            sock.close()
        elif listener == "hangs up":
            worker.listen(sock, hangs_up=True)
        answers = await ask_all(everybody.endpoint(), [about(site)], workers)
        assert answers == Answers(frozenset(), {}, is_foreign=False, is_reachable=False)

    tell(story, site)


def test_what_a_foreign_program_shows_is_nobodys_answer(
    site: Issued, other: Issued, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(probes, "PATIENCE", BRIEF)

    async def story(workers: Workers, everybody: Crew) -> None:
        await employed(workers, everybody, 70, listens=False)
        everybody.hire(666).listen(everybody.socket(), shows=certs.load(other).default)
        answers = await ask_all(everybody.endpoint(), [about(site)], workers)
        assert answers == Answers(frozenset(), {}, is_foreign=True, is_reachable=False)

    tell(story, site)
