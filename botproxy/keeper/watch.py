"""Notices that certificate files may have changed; says so, and never what.

Two ways, each enough alone: the kernel's events (inotify through watchfiles), and a look
at everything every few seconds, because network file systems, overlays and single-file
mounts tell nothing, and events can be lost. Directories are watched, never files: a
rename over a watched file ends its watch without a word. Which directories decide what a
path means (`keeper.paths`) is found out anew after each event. What happens there to
other names than those on the way is passed over: it may never end.

After: `keeper.renewal`, which reads the files and compares what they hold.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from threading import Event
from typing import TYPE_CHECKING, Literal

# Not `watchfiles.awatch`, which costs 4 MiB: it needs all of anyio.
from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError

from botproxy.keeper.paths import deciding_directories, steps

if TYPE_CHECKING:
    from botproxy.config import schema

logger = logging.getLogger(__name__)

Trigger = Literal["event", "poll"]
STEP = 100
"""Milliseconds between two looks of watchfiles at what the kernel has said."""
DEBOUNCE = 200
"""Milliseconds for which it collects, however much comes."""
RETRY = 60.0
"""Seconds until events are tried again where the kernel refused them."""


class Watch:
    """Calls `notice` whenever one of `files` may have changed, while `poll` and `listen` run."""

    def __init__(
        self, files: Sequence[str], settings: schema.Watch, notice: Callable[[Trigger], None]
    ) -> None:
        self._files = files
        self._settings = settings
        self._notice = notice
        self._watched: Watched = {}
        self._entries: frozenset[str] = frozenset()
        """The names on the way to the files, each with its directory."""
        self._moved = Event()
        """The watched directories are no longer the ones that decide."""
        self._has_events = False
        self._complained = False

    @property
    def mode(self) -> Literal["events", "poll"]:
        """Whether the kernel tells, or only polling."""
        return "events" if self._has_events else "poll"

    async def poll(self) -> None:
        """Look by the clock, until it is cancelled."""
        while True:
            await asyncio.sleep(self._settings.poll)
            self._notice("poll")
            await self._look_again()

    async def listen(self) -> None:
        """Be told by the kernel, if that is wanted, until it is cancelled."""
        while self._settings.events:
            self._watched, self._entries = await asyncio.to_thread(_ways, self._files)
            self._moved.clear()
            if not self._watched:
                await asyncio.sleep(RETRY)
                continue
            try:
                # True at the end passes over every refusal in silence, that for want of room included.
                kernel = RustNotify(list(self._watched), False, False, 0, False, False)
            except FileNotFoundError:
                await asyncio.sleep(STEP / 1000)  # it went in this moment: look where the way ends now
            except (OSError, WatchfilesRustInternalError) as error:
                self._has_events = False
                self._complain(error)
                await asyncio.sleep(RETRY)
            else:
                with kernel:
                    await self._listen_to(kernel)

    async def _listen_to(self, kernel: RustNotify) -> None:
        """Until other directories decide."""
        self._has_events = True
        self._notice("event")  # what changed before there was a watch is found by reading now
        again = asyncio.ensure_future(self._look_again())
        try:
            while changed := await self._changed(kernel):
                # A directory that was removed and made again may even have the same inode.
                anew = not self._watched.keys().isdisjoint(changed)
                if anew or not self._entries.isdisjoint(changed):
                    self._notice("event")
                    watched, self._entries = await asyncio.to_thread(_ways, self._files)
                    anew = anew or watched != self._watched
                if anew:
                    return
        finally:
            again.cancel()

    async def _changed(self, kernel: RustNotify) -> set[str]:
        """The paths of the next changes; none when it is time to look which directories decide."""
        told = asyncio.ensure_future(asyncio.to_thread(kernel.watch, DEBOUNCE, STEP, 0, self._moved))
        try:
            found = await asyncio.shield(told)
        except asyncio.CancelledError:
            self._moved.set()  # else its thread would wait for a change that may never come
            await asyncio.wait([told])
            raise
        except WatchfilesRustInternalError:  # the name of some file there is no text
            self._notice("event")
            await asyncio.sleep(STEP / 1000)
            return set()
        return set() if isinstance(found, str) else {path for _, path in found}

    async def _look_again(self) -> None:
        """A directory that came while the watch began is not watched."""
        if await asyncio.to_thread(_ways, self._files) != (self._watched, self._entries):
            self._moved.set()

    def _complain(self, error: Exception) -> None:
        if self._complained:
            return
        self._complained = True
        why = "the limit on inotify watches or instances is reached"
        logger.warning(
            "file events are not available, certificate files are only polled",
            extra={
                "data": {
                    "why": why if "limit" in str(error) or "os error 24" in str(error) else str(error),
                    "poll_seconds": self._settings.poll,
                    "hint": "sysctl fs.inotify.max_user_watches=524288 fs.inotify.max_user_instances=1024",
                }
            },
        )


Watched = dict[str, tuple[int, int]]
"""Directories by path, with device and inode: another directory may take the same path. Those that
may be entered and not read cannot be watched, and are left to polling."""


def _ways(files: Sequence[str]) -> tuple[Watched, frozenset[str]]:
    """What is to be watched, and the entries there that count."""
    # The entries first: what changes between the two is seen when the watch begins.
    entries = frozenset(entry for file in files for _, entry in steps(file))
    found: Watched = {}
    for directory in sorted({each for file in files for each in deciding_directories(file)}):
        try:
            status = os.stat(directory)
        except OSError:
            continue  # it went in this moment; the next look finds where the way ends
        if os.access(directory, os.R_OK, effective_ids=True):
            found[directory] = (status.st_dev, status.st_ino)
    return found, entries
