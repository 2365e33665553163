"""The way to a file through every kind of link that certificates lie behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from botproxy.keeper.paths import deciding_directories, mounted_alone, obstacle, steps
from tests.keeper.conftest import Mounted, away_at, somebody_else


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """The directory for all files; no link leads to it."""
    return tmp_path.resolve()


def below(top: Path, *directories: str) -> set[str]:
    """These of `directories` that are in `top`, by their way from there."""
    return {os.path.relpath(each, top) for each in directories if Path(each).is_relative_to(top)}


def walked(top: Path, file: Path) -> list[tuple[str, str]]:
    """The steps within `top`."""
    return [
        (os.path.relpath(directory, top), os.path.basename(entry))
        for directory, entry in steps(str(file))
        if Path(directory).is_relative_to(top)
    ]


def certbot(top: Path) -> Path:
    """`live/bot/fullchain.pem` as certbot keeps it."""
    (top / "archive/bot").mkdir(parents=True)
    (top / "live/bot").mkdir(parents=True)
    (top / "archive/bot/fullchain1.pem").touch()
    (top / "live/bot/fullchain.pem").symlink_to("../../archive/bot/fullchain1.pem")
    return top / "live/bot/fullchain.pem"


def secret(top: Path) -> Path:
    """`tls.crt` as Kubernetes mounts it."""
    (top / "certs/..2026_01").mkdir(parents=True)
    (top / "certs/..2026_01/tls.crt").touch()
    (top / "certs/..data").symlink_to("..2026_01")
    (top / "certs/tls.crt").symlink_to("..data/tls.crt")
    return top / "certs/tls.crt"


def plain(top: Path) -> Path:
    (top / "a/b").mkdir(parents=True)
    (top / "a/b/site.pem").touch()
    return top / "a/b/site.pem"


def linked_directory(top: Path) -> Path:
    """The whole directory is changed by one absolute link."""
    (top / "releases/7").mkdir(parents=True)
    (top / "releases/7/site.pem").touch()
    (top / "srv").mkdir()
    (top / "srv/current").symlink_to(top / "releases/7")
    return top / "srv/current/site.pem"


# Steps


def test_every_component_is_a_step_from_the_root_on(top: Path):
    file = plain(top)
    directories, entries = zip(*steps(str(file)), strict=True)
    assert directories == tuple(map(str, reversed(file.parents)))
    assert entries == (*directories[1:], str(file))


def test_links_are_followed_where_they_lead(top: Path):
    assert walked(top, certbot(top)) == [
        *[(".", "live"), ("live", "bot"), ("live/bot", "fullchain.pem")],
        *[(".", "archive"), ("archive", "bot"), ("archive/bot", "fullchain1.pem")],
    ]
    assert walked(top, linked_directory(top))[-2:] == [("releases", "7"), ("releases/7", "site.pem")]


def test_a_name_of_two_dots_and_more_is_a_name(top: Path):
    assert walked(top, secret(top))[1:] == [
        *[("certs", "tls.crt"), ("certs", "..data"), ("certs", "..2026_01"), ("certs/..2026_01", "tls.crt")]
    ]


def test_what_is_missing_is_the_last_step(top: Path):
    assert walked(top, top / "no/such/file") == [(".", "no")]


def test_a_circle_comes_to_an_end(top: Path):
    (top / "a").symlink_to("b")
    (top / "b").symlink_to("a")
    assert set(walked(top, top / "a")) == {(".", "a"), (".", "b")}


def test_the_parent_of_a_link_is_that_of_where_it_leads(top: Path):
    """As the kernel has it, also in a path of the configuration."""
    plain(top)
    (top / "a/site.pem").touch()
    (top / "link").symlink_to("a/b")
    (top / "further").symlink_to("link/../site.pem")
    assert walked(top, top / "further")[-1] == ("a", "site.pem")
    assert [*steps(f"{top}/link/../site.pem")][-1] == (f"{top}/a", f"{top}/a/site.pem")


# What decides


@pytest.mark.parametrize(
    ("layout", "decide"),
    [
        (plain, {".", "a", "a/b"}),
        (certbot, {".", "live", "live/bot", "archive", "archive/bot"}),
        (secret, {".", "certs", "certs/..2026_01"}),
        (linked_directory, {".", "srv", "releases", "releases/7"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_directory_on_the_way_decides(top: Path, layout: object, decide: set[str]):
    assert callable(layout)
    assert below(top, *deciding_directories(str(layout(top)))) == decide


def test_where_the_way_is_broken_the_nearest_directory_decides(top: Path):
    live = certbot(top)
    assert below(top, *deciding_directories(f"{top}/no/such/file")) == {"."}
    assert below(top, *deciding_directories(f"{top}/archive/new/file")) == {".", "archive"}
    (top / "archive/bot").rename(top / "archive/gone")
    assert below(top, *deciding_directories(str(live))) == {".", "live", "live/bot", "archive"}
    assert below(top, *deciding_directories(f"{plain(top)}/file")) == {".", "a", "a/b"}


def test_a_directory_in_which_everybody_writes_decides_only_about_links_and_files(top: Path):
    file = plain(top)
    (top / "a").chmod(0o1777)
    assert below(top, *deciding_directories(str(file))) == {".", "a/b"}
    (top / "a/link").symlink_to("b/site.pem")
    assert below(top, *deciding_directories(str(top / "a/link"))) == {".", "a", "a/b"}
    assert below(top, *deciding_directories(str(top / "a/site.pem"))) == {".", "a"}


def test_in_a_circle_every_link_decides(top: Path):
    (top / "x").mkdir()
    (top / "a").symlink_to("x/b")
    (top / "x/b").symlink_to("../a")
    assert below(top, *deciding_directories(f"{top}/a")) == {".", "x"}


# What is in the way


def test_nothing_is_in_the_way_but_the_file_itself(top: Path):
    assert obstacle(str(certbot(top))) == f"{top}/archive/bot/fullchain1.pem"


def test_the_first_missing_component_is_in_the_way(top: Path):
    live = certbot(top)
    assert obstacle(f"{top}/no/such/file") == f"{top}/no"
    (top / "archive/bot/fullchain1.pem").unlink()
    assert obstacle(str(live)) == f"{top}/archive/bot/fullchain1.pem"
    (top / "archive/bot").rmdir()
    assert obstacle(str(live)) == f"{top}/archive/bot"


def test_a_file_in_the_place_of_a_directory_is_in_the_way(top: Path):
    file = plain(top)
    file.chmod(0o755)
    assert obstacle(f"{file}/fullchain.pem") == str(file)


def test_a_closed_directory_is_in_the_way(top: Path):
    live = certbot(top)
    (top / "archive").chmod(0o700 if os.geteuid() == 0 else 0o600)
    try:
        with somebody_else(top):
            assert obstacle(str(live)) == f"{top}/archive"
    finally:
        (top / "archive").chmod(0o700)


# Mounts


def test_a_file_that_is_mounted_is_told_from_one_in_a_directory_that_is(top: Path, with_bind_mount: Mounted):
    source, target = top / "source", top / "mount point \\ of\ttwo"
    for directory in (source, target):
        directory.mkdir()
        (directory / "site.pem").touch()
    (top / "link").symlink_to(target / "site.pem")
    files = [str(file) for file in (top / "link", target / "site.pem", source / "site.pem")]
    code = f"from botproxy.keeper.paths import mounted_alone\nprint(*map(mounted_alone, {files}))"
    assert with_bind_mount(source / "site.pem", target / "site.pem", code) == "True True False"
    assert with_bind_mount(source, target, code) == "False False False"
    assert not mounted_alone(str(target / "site.pem"))


# While it changes


@pytest.mark.parametrize("calls", [1, 2, 1000], ids=["one call", "two calls", "good"])
@pytest.mark.parametrize("layout", [certbot, secret, linked_directory])
def test_a_link_that_goes_in_any_moment_is_a_way_that_ends_there(
    top: Path, layout: Callable[[Path], Path], calls: int
):
    file = str(layout(top))
    links = [entry for _, entry in steps(file) if os.path.islink(entry)]
    for link in links:
        for call in range(1, 1000):
            with away_at(Path(link), call, calls) as has_come:
                found = deciding_directories(file)
                assert obstacle(file)
                assert not mounted_alone(file)
            assert os.path.dirname(link) in found
            if not has_come():
                break
        assert call > 10
