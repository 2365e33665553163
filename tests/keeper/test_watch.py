"""Every way in which files change is noticed, again and again: by events alone, and by polling alone."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from botproxy.config import schema
from botproxy.keeper.watch import Trigger, Watch
from tests.certs import Authority, Issued
from tests.e2e import layouts
from tests.e2e.layouts import Layout

PATIENCE = 20.0
EVENTS = schema.Watch.model_validate({"poll": "1h"})
POLLING = schema.Watch.model_validate({"events": False, "poll": "50ms"})
BOTH = schema.Watch.model_validate({"poll": "200ms"})


class Seen:
    """Reads the files of a layout whenever it is told to, and only then."""

    def __init__(self, chain: Path, key: Path) -> None:
        self._files = chain, key
        self.told: list[Trigger] = []
        self._again = asyncio.Event()
        self._content: list[bytes] | None = None

    def notice(self, trigger: Trigger) -> None:
        self.told.append(trigger)
        try:
            self._content = [file.read_bytes() for file in self._files]
        except OSError:
            self._content = None
        self._again.set()

    async def holds(self, issued: Issued | None, trigger: Trigger | None = None) -> None:
        """Wait until the files were read and held `issued` (None: nothing that can be read)."""
        wanted = None if issued is None else [issued.chain_pem, issued.key_pem]
        async with asyncio.timeout(PATIENCE):
            while self._content != wanted or (trigger is not None and self.told[-1] != trigger):
                self._again.clear()
                await self._again.wait()

    async def tells(self) -> None:
        """Wait until the kernel has told of something once more."""
        before = self.told.count("event")
        async with asyncio.timeout(PATIENCE):
            while self.told.count("event") == before:
                self._again.clear()
                await self._again.wait()

    async def begins(self) -> None:
        """Wait until the kernel tells of changes."""
        async with asyncio.timeout(PATIENCE):
            while not self.told:
                self._again.clear()
                await self._again.wait()


def tell(
    settings: schema.Watch, chain: Path, key: Path, story: Callable[[Seen, Watch], Awaitable[None]]
) -> None:
    async def main() -> None:
        seen = Seen(chain, key)
        watch = Watch([str(chain), str(key)], settings, seen.notice)
        jobs = [asyncio.ensure_future(job) for job in (watch.poll(), watch.listen())]
        try:
            await seen.begins()
            await story(seen, watch)
        finally:
            for job in jobs:
                job.cancel()
            for ended in await asyncio.gather(*jobs, return_exceptions=True):
                assert ended is None or isinstance(ended, asyncio.CancelledError)

    asyncio.run(main())


KINDS: dict[str, type[Layout]] = {
    "in place": layouts.InPlace,
    "renamed over": layouts.RenameOver,
    "removed and made again": layouts.RemoveAndCreate,
    "with an old time": layouts.OldTime,
    "certbot": layouts.Certbot,
    "kubernetes": layouts.Kubernetes,
    "link to a directory": layouts.DirectoryLink,
    "directory made again": layouts.DirectoryAnew,
    "directory swapped": layouts.DirectorySwapped,
    "directory above swapped": layouts.DirectoryAboveSwapped,
}


@pytest.mark.parametrize("settings", [EVENTS, POLLING], ids=["events", "polling"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_change_is_noticed_and_so_are_the_next_ones(
    kind: type[Layout], settings: schema.Watch, ca: Authority, tmp_path: Path
):
    layout = kind(tmp_path / "site", ca.issue("a.test"))

    async def story(seen: Seen, watch: Watch) -> None:
        # Whoever loses its watch by the first change may still hear of the second by what was told late.
        for issued in (ca.issue("a.test") for _ in range(3)):
            layout.renew(issued)
            await seen.holds(issued)
        assert watch.mode == ("events" if settings is EVENTS else "poll")
        assert set(seen.told) == ({"event"} if settings is EVENTS else {"poll"})

    tell(settings, layout.chain, layout.key, story)


def test_what_changes_beside_the_files_and_above_them_is_nobodys_affair(ca: Authority, tmp_path: Path):
    """Else it would go on and on, and a renewal would wait for it to end."""
    directory = tmp_path / "above" / "site"
    entry = ca.issue("a.test").write(directory)
    (directory / "link").symlink_to("site.pem")

    async def story(seen: Seen, watch: Watch) -> None:
        before = seen.told.count("event")
        polls = seen.told.count("poll")
        while seen.told.count("poll") < polls + 8:
            for place in (tmp_path, directory.parent, directory):
                (place / "noise").write_text("noise")
                (place / "noise").rename(place / "noise.old")
            await asyncio.sleep(0.02)
        assert seen.told.count("event") == before
        # What the way leads over has other names now.
        (directory / "second.pem").write_bytes(b"")
        (directory / "new").symlink_to("second.pem")
        (directory / "new").rename(directory / "link")
        issued = ca.issue("a.test")
        for _ in range(2):
            await seen.tells()
            (directory / "second.pem").write_bytes(issued.chain_pem)
        await seen.tells()

    tell(BOTH, directory / "link", Path(entry.key), story)


def test_directories_that_come_later_are_watched_from_then_on(ca: Authority, tmp_path: Path):
    directory = tmp_path / "later" / "site"

    async def story(seen: Seen, watch: Watch) -> None:
        for _ in range(2):
            await seen.holds(None)
            for issued in (ca.issue("a.test") for _ in range(3)):
                issued.write(directory)
                await seen.holds(issued)
            shutil.rmtree(tmp_path / "later")

    tell(EVENTS, directory / "site.pem", directory / "site.key", story)


def test_a_file_whose_name_is_no_text_stops_nothing(ca: Authority, tmp_path: Path):
    entry = ca.issue("a.test").write(tmp_path)

    async def story(seen: Seen, watch: Watch) -> None:
        for number in range(2):
            os.close(os.open(os.fsencode(tmp_path) + b"/\xff%d" % number, os.O_CREAT | os.O_WRONLY))
            issued = ca.issue("a.test")
            issued.write(tmp_path)
            await seen.holds(issued)

    tell(BOTH, Path(entry.chain), Path(entry.key), story)


def test_what_changes_while_the_watch_begins_is_noticed(ca: Authority, tmp_path: Path):
    """The first reading comes when there is a watch already: nothing can change unseen between the two."""
    entry = ca.issue("a.test").write(tmp_path)
    changed = ca.issue("a.test")

    async def main() -> None:
        seen = Seen(Path(entry.chain), Path(entry.key))

        def notice(trigger: Trigger) -> None:
            seen.notice(trigger)
            if len(seen.told) == 1:
                changed.write(tmp_path)

        watch = Watch([entry.chain, entry.key], EVENTS, notice)
        listening = asyncio.ensure_future(watch.listen())
        await seen.holds(changed)
        assert len(seen.told) > 1
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    asyncio.run(main())


def test_a_directory_that_comes_while_the_watch_begins_is_watched(ca: Authority, tmp_path: Path):
    directory = tmp_path / "later"
    slow = [str(tmp_path / "other" / str(number)) for number in range(5000)]

    async def main() -> None:
        seen = Seen(directory / "site.pem", directory / "site.key")
        watch = Watch([str(directory / "site.pem"), str(directory / "site.key"), *slow], EVENTS, seen.notice)
        listening = asyncio.ensure_future(watch.listen())
        await asyncio.sleep(0.02)  # by now the first file was looked for, and not yet the last one
        for issued in (ca.issue("a.test") for _ in range(3)):
            issued.write(directory)
            await seen.holds(issued)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

    asyncio.run(main())


def test_another_place_that_no_event_told_of_is_found_by_polling_and_then_watched(
    ca: Authority, tmp_path: Path
):
    above = tmp_path / "everybodys" / "above"
    above.parent.mkdir()
    above.parent.chmod(0o1777)
    ca.issue("a.test").write(above / "certs" / "site")
    other, third = ca.issue("a.test"), ca.issue("a.test")
    other.write(tmp_path / "other" / "certs" / "site")

    async def story(seen: Seen, watch: Watch) -> None:
        os.rename(above, tmp_path / "away")
        os.rename(tmp_path / "other", above)
        await seen.holds(other)
        third.write(above / "certs" / "site")
        await seen.holds(third, "event")

    directory = above / "certs" / "site"
    tell(BOTH, directory / "site.pem", directory / "site.key", story)


# Where the kernel has no room for watches


EXHAUSTED = """
import asyncio, json, logging, pathlib, sys
from botproxy.config import schema
from botproxy.keeper import watch

watch.RETRY = 0.05
limit, file = map(pathlib.Path, sys.argv[1:])
said, polls = [], 0

class Remembered(logging.Handler):
    def emit(self, record):
        said.append([record.levelname, record.getMessage(), record.data])

logging.getLogger("botproxy").addHandler(Remembered())

async def until(what):
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.01)

async def main():
    told = []
    watching = watch.Watch([str(file)], schema.Watch(poll="100ms"), told.append)
    limit.write_text("0")
    jobs = [asyncio.ensure_future(job) for job in (watching.poll(), watching.listen())]
    await until(lambda: told.count("poll") >= 5)
    modes = [watching.mode]
    limit.write_text("1000")
    await until(lambda: watching.mode == "events" and told.count("event") >= 1)
    modes.append(watching.mode)
    del told[:]
    file.write_text("changed")
    await until(lambda: "event" in told)
    limit.write_text("0")
    file.parent.rename(file.parent.with_name("away"))
    await until(lambda: watching.mode == "poll")
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    print(json.dumps({"modes": modes, "said": said}))

asyncio.run(main())
"""


@pytest.mark.parametrize("limit", ["max_inotify_watches", "max_inotify_instances"])
def test_without_room_for_watches_files_are_polled_which_is_said_once(limit: str, tmp_path: Path):
    space = ["unshare", "--user", "--map-root-user"]
    file = Path("/proc/sys/user") / limit
    if subprocess.run([*space, "test", "-w", str(file)], capture_output=True, check=False).returncode != 0:
        pytest.skip("a user namespace is needed")
    site = tmp_path / "site" / "site.pem"
    site.parent.mkdir()
    site.write_text("first")
    done = subprocess.run(
        [*space, sys.executable, "-c", EXHAUSTED, str(file), str(site)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    [[level, message, data]] = found["said"]
    assert (level, message) == ("WARNING", "file events are not available, certificate files are only polled")
    assert data["why"] == "the limit on inotify watches or instances is reached"
    assert data["poll_seconds"] == 0.1
    assert found["modes"] == ["poll", "events"]
