"""Which sockets are readable or writable: one epoll set of our own inside the event loop.

The loop's own watchers cost ten system calls and several objects for each connection
(libuv tries a descriptor before it takes it, sets it non-blocking, and changes its set
again and again). Here a socket is one entry in one set, changed only when what is wanted
changes, and gone when the socket is closed; the loop watches the set and nothing else.
Who stops reading is usually closed before anything more comes, or reads again: then the
set is not changed at all.

Used by `net.stream` and `net.readiness`. Moves no bytes and owns no socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from select import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, epoll
from weakref import WeakKeyDictionary

_FAULT = EPOLLERR | EPOLLHUP
"""What the kernel tells of a dead socket, asked or not: the next read or write says what is wrong."""
_READER = EPOLLIN | _FAULT
_WRITER = EPOLLOUT | _FAULT

AT_ONCE = 256
"""Sockets told in one turn; the others in the next."""

Watcher = Callable[[], None]


class Poller:
    """The sockets of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = epoll()
        self._readers: dict[int, Watcher | None] = {}
        """None: whoever it was is not told any more, and the kernel has not heard of it yet."""
        self._writers: dict[int, Watcher] = {}
        self._fresh: set[int] = set()
        """Came while events are passed on: the number may be that of a socket closed just before."""
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def add_reader(self, fd: int, watcher: Watcher) -> None:
        """Call `watcher` while `fd` is readable; it takes the place of another one."""
        if fd not in self._readers:
            self._want(fd, EPOLLIN, EPOLLOUT if fd in self._writers else 0)
        self._readers[fd] = watcher

    def remove_reader(self, fd: int, watcher: Watcher) -> None:
        """Unless another watcher has taken its place."""
        if fd in self._readers and self._readers[fd] in (watcher, None):
            self._drop_reader(fd)

    def hush_reader(self, fd: int, watcher: Watcher) -> None:
        """As `remove_reader`, for who calls `forget` in the end: the kernel is told if something comes."""
        if self._readers.get(fd) == watcher:
            self._readers[fd] = None

    def add_writer(self, fd: int, watcher: Watcher) -> None:
        """Call `watcher` while `fd` is writable."""
        if fd not in self._writers:
            self._want(fd, EPOLLOUT, EPOLLIN if fd in self._readers else 0)
        self._writers[fd] = watcher

    def remove_writer(self, fd: int, watcher: Watcher) -> None:
        if self._writers.get(fd) == watcher:
            del self._writers[fd]
            self._unwant(fd, EPOLLIN if fd in self._readers else 0)

    def forget(self, fd: int) -> None:
        """`fd` is closed next, and the kernel forgets it then."""
        self._readers.pop(fd, None)
        self._writers.pop(fd, None)

    def _drop_reader(self, fd: int) -> None:
        del self._readers[fd]
        self._unwant(fd, EPOLLOUT if fd in self._writers else 0)

    def _want(self, fd: int, more: int, already: int) -> None:
        if already:
            self._epoll.modify(fd, already | more)
        else:
            self._fresh.add(fd)
            self._epoll.register(fd, more)

    def _unwant(self, fd: int, left: int) -> None:
        if left:
            self._epoll.modify(fd, left)
        else:
            self._epoll.unregister(fd)

    def _dispatch(self) -> None:
        # An error of a watcher ends this turn; whoever was not told yet is told in the next one.
        readers, writers, fresh = self._readers, self._writers, self._fresh
        fresh.clear()
        for fd, events in self._epoll.poll(0, AT_ONCE):
            if fresh and fd in fresh:
                continue
            if events & _READER:
                if (watcher := readers.get(fd)) is not None:
                    watcher()
                elif fd in readers:
                    self._drop_reader(fd)
            if writers and events & _WRITER and (watcher := writers.get(fd)) is not None and fd not in fresh:
                watcher()


_pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, Poller] = WeakKeyDictionary()


def poller_of(loop: asyncio.AbstractEventLoop) -> Poller:
    """The only one of `loop`."""
    poller = _pollers.get(loop)
    if poller is None:
        poller = _pollers[loop] = Poller(loop)
    return poller
