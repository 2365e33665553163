"""Children of the supervisor: forked, talked to, and buried; nobody holds what is another's."""

from __future__ import annotations

import os
import select
import selectors
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from botproxy.control import link, packets
from botproxy.server.children import CRASHED, IGNORED, SIGNALS, Channel, Child, Children

PATIENCE = 20.0
Body = Callable[[socket.socket], int]


@pytest.fixture
def selector() -> Iterator[selectors.BaseSelector]:
    with selectors.DefaultSelector() as made:
        yield made


@pytest.fixture
def children(selector: selectors.BaseSelector) -> Iterator[Children]:
    made = Children(selector)
    yield made
    made.signal(made, signal.SIGKILL)
    for child in made:
        ended(child)
    made.reap()


def ended(child: Child | int) -> None:
    """Wait until it has, without burying it."""
    fd = os.pidfd_open(child if isinstance(child, int) else child.pid)
    try:
        assert select.select([fd], [], [], PATIENCE)[0]
    finally:
        os.close(fd)


def worker(children: Children, body: Body, *foreign: socket.socket) -> Child:
    child = Child("worker 0", 0, 0, Channel.make())
    children.fork(child, foreign, body)
    return child


def until_the_end(sock: socket.socket) -> int:
    """A body that ends with 5 when `sock` does."""
    sock.setblocking(True)
    while sock.recv(100):
        pass
    return 5


def forever(_: socket.socket) -> int:
    signal.pause()
    return 1


def code_of(children: Children, child: Child) -> int:
    ended(child)
    [(buried, code)] = children.reap()
    assert buried is child
    return code


def has_ended(sock: socket.socket) -> bool:
    """Whether the other end is closed, as seen within the time that takes."""
    assert select.select([sock], [], [], PATIENCE)[0]
    return sock.recv(100) == b""


def test_a_child_and_its_parent_talk_until_it_ends_and_is_forgotten(
    children: Children, selector: selectors.BaseSelector
):
    def body(control: socket.socket) -> int:
        packets.send(control, link.Ready())
        return 7 if link.from_supervisor(control) == link.Retire(False, 0) else 1

    child = worker(children, body)
    [(key, _)] = selector.select(PATIENCE)
    assert key.data is child
    assert link.from_child(child.link) == link.Ready()
    assert list(children) == [child]
    children.tell(child, link.Retire(False, 0))
    assert code_of(children, child) == 7
    assert (len(children), len(selector.get_map())) == (0, 0)
    assert child.channel is not None
    assert {each.fileno() for each in (child.link, child.channel.keeper, child.channel.worker)} == {-1}


def test_what_a_child_said_to_the_last_is_heard(children: Children):
    def body(control: socket.socket) -> int:
        packets.send(control, link.Failed(("no certificate",)))
        return 2

    child = worker(children, body)
    ended(child)
    heard: list[object] = []

    def hear_out(buried: Child) -> None:
        assert buried.link is not None
        heard.append(link.from_child(buried.link))

    assert children.reap(hear_out) == [(child, 2)]
    assert heard == [link.Failed(("no certificate",))]


@pytest.mark.parametrize("error", [ValueError("a bug"), SystemExit(0), KeyboardInterrupt()])
def test_whatever_a_child_raises_it_ends_there_with_70(children: Children, error: BaseException):
    def body(_: socket.socket) -> int:
        raise error

    assert code_of(children, worker(children, body)) == CRASHED == 70


def test_a_child_that_is_killed_is_told_apart(children: Children):
    child = worker(children, forever)
    children.signal([child], signal.SIGKILL)
    assert code_of(children, child) == -signal.SIGKILL
    children.signal([child], signal.SIGKILL)  # its number may be another's by now: nobody is hit
    children.tell(child, link.Retire(False, 0))


def test_processes_that_are_none_of_ours_are_buried_without_a_word(children: Children):
    child = worker(children, forever)
    stranger = os.fork()
    if stranger == 0:
        os._exit(3)
    ended(stranger)
    assert children.reap() == []
    assert list(children) == [child]


# Whose is what


def test_a_child_sees_the_end_of_its_link_while_siblings_live(children: Children):
    child, sibling = worker(children, until_the_end), worker(children, until_the_end)
    assert child.link is not None
    with socket.socket() as other:  # takes its number, so that only the end itself is gone
        os.dup2(other.fileno(), child.link.fileno())
    assert code_of(children, child) == 5
    assert list(children) == [sibling]


def test_the_parent_sees_the_end_of_a_child_while_siblings_live(
    children: Children, selector: selectors.BaseSelector
):
    child, _ = worker(children, forever), worker(children, forever)
    children.signal([child], signal.SIGKILL)
    [(key, _)] = selector.select(PATIENCE)
    assert key.data is child
    with pytest.raises(EOFError):
        link.from_child(child.link)
    children.deafen(child)
    assert len(selector.get_map()) == 1


def test_a_worker_sees_the_end_of_its_channel_while_siblings_live(children: Children):
    child = Child("worker 0", 0, 0, Channel.make())
    channel = child.channel
    assert channel is not None
    children.fork(child, (), lambda _: until_the_end(channel.worker))
    worker(children, forever)
    channel.close()
    assert code_of(children, child) == 5


def test_the_keeper_sees_the_end_of_a_worker_while_siblings_live(children: Children):
    child, _ = worker(children, forever), worker(children, forever)
    assert child.channel is not None
    with child.channel.keeper.dup() as keepers:
        children.signal([child], signal.SIGKILL)
        assert code_of(children, child) == -signal.SIGKILL
        assert has_ended(keepers)


def test_a_child_does_not_hold_what_is_foreign_to_it(children: Children):
    near, far = socket.socketpair()
    with far:
        worker(children, forever, near)
        near.close()
        assert has_ended(far)


# Signals


def test_a_child_answers_no_signal_for_its_parent(children: Children):
    def body(_: socket.socket) -> int:
        handlers = [signal.getsignal(number) for number in SIGNALS]
        wanted = [signal.SIG_IGN if number in IGNORED else signal.SIG_DFL for number in SIGNALS]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return 0 if (handlers, blocked, signal.set_wakeup_fd(-1)) == (wanted, set(), -1) else 1

    near, far = socket.socketpair()
    near.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(near.fileno(), warn_on_full_buffer=False)
    try:
        assert code_of(children, worker(children, body)) == 0
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        near.close()
        far.close()


def test_a_child_that_does_not_listen_is_ended(children: Children, caplog: pytest.LogCaptureFixture):
    child, well = worker(children, forever), worker(children, until_the_end)
    assert child.link is not None
    assert not child.link.getblocking()
    for _ in range(100_000):
        children.tell(child, link.Serve())
        if caplog.records:
            break
    assert code_of(children, child) == -signal.SIGKILL
    assert "does not listen" in caplog.text
    assert list(children) == [well]
