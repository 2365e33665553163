"""What was accepted stays on disk: whole or not at all, for our eyes only, and not without end."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from botproxy.keeper.store import KEPT, Generation, Refusal, Store
from tests.keeper.conftest import no_room

CHAIN, KEY = b"chain" * 10_000, b"key" * 20_000
META = {"accepted": "2026-01-01T00:00:00+00:00", "names": ["a.test"]}
REFUSAL = Refusal("ab" * 32, "expired", "it expired", "renew it", "2026-01-01T00:00:00+00:00", final=True)
DEEP = b"[" * 100_000
PATIENCE = 10.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One whose directory does not exist yet."""
    return Store(tmp_path / "state" / "certs")


def keep(store: Store, times: int = 1, name: str = "site") -> int:
    numbers = [store.keep(name, CHAIN, KEY, META) for _ in range(times)]
    return numbers[-1]


def entries(store: Store, name: str = "site") -> set[str]:
    return set(os.listdir(store.directory / name))


def served(store: Store) -> list[int]:
    return [generation.number for generation in store.candidates("site")]


# Generations


def test_where_nothing_was_kept_there_is_nothing(store: Store):
    assert store.current("site") is None
    assert store.numbers("site") == []
    assert store.read("site", 1) is None
    assert served(store) == []
    assert store.refusal("site") is None
    assert not store.directory.exists()


def test_a_generation_is_read_as_it_was_kept(store: Store):
    assert keep(store) == 1
    assert store.read("site", 1) == Generation(1, CHAIN, KEY, {"generation": 1, **META})
    assert "key" not in repr(store.read("site", 1))
    assert store.directory == store.directory.parent / "certs"


@pytest.mark.parametrize("password", [b"sesame", b"", b"two\nlines\n"], ids=repr)
def test_a_password_is_kept_beside_the_key_that_it_opens(store: Store, password: bytes):
    store.keep("site", CHAIN, KEY, META, password)
    kept = store.read("site", 1)
    assert kept is not None
    assert kept.password == password
    assert not password or repr(password) not in repr(kept)
    assert (store.directory / "site" / "1" / "password").stat().st_mode & 0o777 == 0o600


def test_a_password_is_added_to_a_generation_that_has_none_and_to_no_other(store: Store):
    keep(store)
    store.add_password("site", 1, b"sesame")
    store.add_password("site", 1, b"another")
    store.add_password("site", 9, b"sesame")
    kept = store.read("site", 1)
    assert kept == Generation(1, CHAIN, KEY, {"generation": 1, **META}, password=b"sesame")
    assert entries(store) == {"1", "current"}
    assert set(os.listdir(store.directory / "site" / "1")) == {
        *("fullchain.pem", "privkey.pem", "meta.json", "password")
    }


def test_a_password_that_cannot_be_written_whole_is_not_there(store: Store):
    keep(store)
    with no_room(3), pytest.raises(OSError, match="File too large"):
        store.add_password("site", 1, b"sesame")
    kept = store.read("site", 1)
    assert kept is not None
    assert kept.password is None
    store.add_password("site", 1, b"sesame")
    assert store.read("site", 1) == replace(kept, password=b"sesame")


def test_the_last_one_that_was_kept_is_current(store: Store):
    assert keep(store, times=3) == 3
    assert store.current("site") == 3
    assert os.readlink(store.directory / "site" / "current") == "3"
    assert entries(store) == {"1", "2", "3", "current"}
    assert set(os.listdir(store.directory / "site" / "3")) == {"fullchain.pem", "privkey.pem", "meta.json"}


def test_certificates_have_generations_of_their_own(store: Store):
    keep(store, times=2)
    assert keep(store, name="other") == 1
    assert (store.numbers("site"), store.numbers("other")) == ([1, 2], [1])


def test_the_current_one_comes_first_and_then_the_newest(store: Store):
    keep(store, times=3)
    assert served(store) == [3, 2, 1]
    store.point("site", 1)
    assert store.current("site") == 1
    assert served(store) == [1, 3, 2]
    store.point("site", 9)
    assert served(store) == [3, 2, 1]


@pytest.mark.parametrize("target", ["", "x", "../../elsewhere", "-1"])
def test_a_pointer_to_nowhere_points_to_nothing(store: Store, target: str):
    keep(store)
    pointer = store.directory / "site" / "current"
    pointer.unlink()
    if target:
        pointer.symlink_to(target)
    assert store.current("site") is None
    assert served(store) == [1]
    assert keep(store) == 2
    assert store.current("site") == 2


def test_as_many_as_promised_are_kept(store: Store):
    keep(store, times=KEPT + 3)
    assert store.numbers("site") == [4, 5, 6, 7, 8]
    assert entries(store) == {"4", "5", "6", "7", "8", "current"}


def test_the_one_that_was_current_until_now_is_kept_for_the_way_back(store: Store):
    keep(store, times=KEPT)
    store.point("site", 1)
    assert keep(store) == KEPT + 1
    store.point("site", 1)
    assert served(store)[0] == 1


def test_what_was_rolled_back_is_the_last_resort_until_it_is_pointed_to_again(store: Store):
    keep(store, 3)
    store.point("site", 1)
    store.mark_rolled_back("site", 3)
    generation = store.read("site", 3)
    assert generation is not None
    assert generation.is_rolled_back
    assert served(store) == [1, 2, 3]
    store.point("site", 3)
    generation = store.read("site", 3)
    assert generation is not None
    assert not generation.is_rolled_back
    store.mark_rolled_back("site", 7)  # it is gone meanwhile
    assert store.numbers("site") == [1, 2, 3]


@pytest.mark.parametrize(
    ("current", "kept"),
    [(1, [1, 3, 4, 5, 6]), (2, [2, 3, 4, 5, 6]), (4, [2, 3, 4, 5, 6]), (9, [2, 3, 4, 5, 6])],
)
def test_after_a_way_back_no_more_are_kept_than_promised(store: Store, current: int, kept: list[int]):
    keep(store, times=KEPT)
    store.point("site", current)
    keep(store)
    assert store.numbers("site") == kept
    keep(store)
    assert store.numbers("site") == [3, 4, 5, 6, 7]


def test_all_but_the_current_one_are_forgotten_on_demand(store: Store):
    keep(store, times=4)
    store.point("site", 2)
    store.forget_others("site", 2)
    assert entries(store) == {"2", "current"}
    assert served(store) == [2]


def test_what_a_rollout_is_about_to_serve_is_not_forgotten_with_the_others(store: Store):
    keep(store, 3)
    store.forget_others("site", 2)
    assert store.numbers("site") == [2, 3]
    store.forget_others("site", 0)
    assert store.numbers("site") == []


def test_what_a_crash_left_behind_is_forgotten_with_the_others(store: Store):
    """There may be a key in it."""
    keep(store, 2)
    (store.directory / "site" / ".new-4711").mkdir()
    store.forget_others("site", 2)
    assert entries(store) == {"2", "current"}


# Half of something


def no_key(generation: Path) -> None:
    (generation / "privkey.pem").unlink()


def no_meta(generation: Path) -> None:
    (generation / "meta.json").unlink()


def linked_key(generation: Path) -> None:
    (generation / "privkey.pem").rename(generation.parent / "elsewhere")
    (generation / "privkey.pem").symlink_to(generation.parent / "elsewhere")


def piped_chain(generation: Path) -> None:
    (generation / "fullchain.pem").unlink()
    os.mkfifo(generation / "fullchain.pem")


def directory_for_a_file(generation: Path) -> None:
    (generation / "fullchain.pem").unlink()
    (generation / "fullchain.pem").mkdir()


def meta_of(content: bytes) -> Callable[[Path], None]:
    def damage(generation: Path) -> None:
        (generation / "meta.json").write_bytes(content)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(no_key, no_meta, linked_key, piped_chain, directory_for_a_file),
        *map(meta_of, [b"", b'{"generation": 2', b"\xff", b"[]", b'"x"', DEEP]),
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_generation_is_passed_over(store: Store, damage: Callable[[Path], None]):
    keep(store, times=3)
    for number in (3, 2):
        damage(store.directory / "site" / str(number))
        assert store.read("site", number) is None
    assert served(store) == [1]


@pytest.mark.parametrize("size", [0, len(CHAIN) - 1, len(CHAIN), len(KEY) - 1])
def test_a_full_disk_leaves_everything_as_it_was(store: Store, size: int):
    keep(store, times=2)
    with no_room(size), pytest.raises(OSError, match="File too large"):
        keep(store)
    assert entries(store) == {"1", "2", "current"}
    assert store.current("site") == 2
    assert keep(store) == 3


def test_a_pointer_that_cannot_be_moved_leaves_no_generation_behind(store: Store):
    """It would be kept again and again."""
    keep(store)
    pointer = store.directory / "site" / "current"
    pointer.unlink()
    pointer.mkdir()
    with pytest.raises(OSError, match=r"."):
        keep(store)
    assert store.numbers("site") == [1]


def whole(store: Store, number: int | None) -> bool:
    generation = None if number is None else store.read("site", number)
    return generation is not None and (generation.chain, generation.key) == (CHAIN, KEY)


def test_a_writer_may_be_watched_and_killed_at_any_moment(store: Store):
    """Whoever looks finds a pointer to something whole, and nothing new that is half."""
    keep(store)
    for _ in range(5):
        until = (store.current("site") or 0) + 20
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    store.keep("site", CHAIN, KEY, META)
            finally:
                os._exit(1)
        try:
            while (current := store.current("site") or 0) < until:
                assert current > 0
                newest = store.numbers("site")[-1]
                # Unless it has become one of the oldest while we looked.
                assert whole(store, newest) or (store.current("site") or 0) >= newest + KEPT
                assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert all(whole(store, number) for number in (store.current("site"), *store.numbers("site")[-KEPT:]))
    keep(store)
    assert entries(store) == {*map(str, store.numbers("site")), "current"}


def test_what_a_crash_left_behind_is_swept(store: Store):
    keep(store)
    home = store.directory / "site"
    (home / ".new-4711").mkdir()
    (home / ".new-4711" / "privkey.pem").write_bytes(KEY)
    (home / f".new-{os.getpid()}").mkdir()
    (home / ".current").symlink_to("7")
    (home / ".refused").write_bytes(b'{"digest"')
    assert served(store) == [1]
    assert keep(store) == 2
    store.refuse("site", REFUSAL)
    assert entries(store) == {"1", "2", "current", "refused.json"}
    assert store.refusal("site") == REFUSAL


def is_waited_for(lock: int) -> bool:
    """Whether somebody waits for `lock`; an arrow marks those (proc_locks(5))."""
    file = f":{os.fstat(lock).st_ino} "
    return any("->" in line and file in line for line in Path("/proc/locks").read_text().splitlines())


def test_one_writes_at_a_time(store: Store):
    keep(store)
    lock = os.open(store.directory, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        keeping = pool.submit(keep, store)
        while not is_waited_for(lock) and not keeping.done():
            pass
        meanwhile = store.numbers("site")
        os.close(lock)
        assert keeping.result(PATIENCE) == 2
    assert meanwhile == [1]


# Our eyes only


@pytest.mark.parametrize("mask", [0, 0o022, 0o077], ids=oct)
def test_nobody_else_reads_it_whatever_the_umask(store: Store, mask: int):
    before = os.umask(mask)
    try:
        keep(store)
        store.refuse("site", REFUSAL)
    finally:
        os.umask(before)
    for path in (store.directory, *store.directory.rglob("*")):
        if not path.is_symlink():
            wanted = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_a_link_in_the_place_of_a_file_is_not_written_through(store: Store, tmp_path: Path):
    keep(store)
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    home = store.directory / "site"
    (home / "refused.json").symlink_to(victim)
    assert store.refusal("site") is None
    store.refuse("site", REFUSAL)
    assert store.refusal("site") == REFUSAL
    (home / ".refused").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        store.refuse("site", REFUSAL)
    assert victim.read_bytes() == b"untouched"


def test_no_descriptor_is_lost_on_any_road(store: Store):
    keep(store)
    before = sorted(os.listdir("/proc/self/fd"))
    keep(store)
    store.refuse("site", REFUSAL)
    with no_room(), pytest.raises(OSError, match="File too large"):
        keep(store)
    assert store.read("site", 9) is None
    piped_chain(store.directory / "site" / "1")
    assert store.read("site", 1) is None
    assert sorted(os.listdir("/proc/self/fd")) == before


# Refusals


def test_a_refusal_is_remembered_until_it_is_forgotten(store: Store):
    store.refuse("site", REFUSAL)
    assert Store(store.directory).refusal("site") == REFUSAL
    assert store.refusal("other") is None
    later = replace(REFUSAL, rule="loses_names", final=False)
    store.refuse("site", later)
    assert store.refusal("site") == later
    for _ in range(2):
        store.forget_refusal("site")
        assert store.refusal("site") is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b"{}", b'{"digest": "ab"}', DEEP], ids=lambda content: content[:9]
)
def test_a_damaged_refusal_is_none(store: Store, content: bytes):
    store.refuse("site", REFUSAL)
    (store.directory / "site" / "refused.json").write_bytes(content)
    assert store.refusal("site") is None


def test_a_disk_that_fails_is_an_error_for_whoever_writes(store: Store):
    store.directory.parent.mkdir()
    store.directory.touch()
    for write in (
        lambda: keep(store),
        lambda: store.point("site", 1),
        lambda: store.add_password("site", 1, b"sesame"),
        lambda: store.refuse("site", REFUSAL),
        lambda: store.forget_refusal("site"),
        lambda: store.forget_others("site", 1),
    ):
        with pytest.raises(OSError, match=r"Not a directory|File exists"):
            write()
