"""The configuration as those have it that serve: read by a process that has ended, as plain data."""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from botproxy.config import apart, load
from botproxy.config.schema import Section
from botproxy.errors import ConfigError, NotRead

EVERYTHING = """
listen: [":8443", { address: "127.0.0.1:8444", proxy_protocol_from: [10.0.0.0/8, "fd00::/8"] }]
certificates:
  - { chain: chain.pem, key: key.pem, name: site }
  - { chain: other/chain.pem, key: other/key.pem }
upstreams:
  bot: { url: "http://127.0.0.1:8000", hold: 2s }
  other: { url: "unix:/run/other.sock", reuse: shared }
routes:
  - { hosts: [bot.example.com], path: /telegram, upstream: bot, rate: { per_address: 20/s } }
  - { upstream: other }
headers: { hsts: off, set: { X-Token: "kept for ourselves" } }
timeouts: { retire: unlimited }
trusted_proxies: [192.0.2.1]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "botproxy.yaml"
    path.write_text(EVERYTHING)
    return path


def read(path: Path) -> Any:
    return apart.read(lambda: load.load_file(str(path)))


def same(plain: Any, section: Any) -> bool:
    """Whether everything in `section` is in `plain`."""
    if isinstance(section, Section):
        return all(same(getattr(plain, key), getattr(section, key)) for key in type(section).model_fields)
    if isinstance(section, tuple):
        return len(plain) == len(section) and all(map(same, plain, section))
    if isinstance(section, dict):
        return plain.keys() == section.keys() and all(same(plain[key], section[key]) for key in section)
    return type(plain) is type(section) and bool(plain == section)


def test_every_key_is_what_the_schema_makes_of_it(file: Path) -> None:
    plain = read(file)
    assert same(plain, load.load_file(str(file)))
    assert (plain.routes[0].hosts, plain.headers.hsts.enabled) == (("bot.example.com",), False)


def test_nothing_of_the_validation_library_is_left(file: Path) -> None:
    def classes(value: Any) -> Iterator[type]:
        if isinstance(value, tuple):
            for each in value:
                yield from classes(each)
        elif isinstance(value, dict):
            yield from classes(tuple(value.values()))
        else:
            yield type(value)
            if hasattr(value, "__dataclass_fields__"):
                yield from classes(tuple(getattr(value, key) for key in value.__dataclass_fields__))

    modules = {each.__module__.partition(".")[0] for each in classes(read(file))}
    assert "ipaddress" in modules
    assert not modules & {"pydantic", "pydantic_core"}


def test_it_is_frozen(file: Path) -> None:
    config = read(file)
    for section, key in ((config, "workers"), (config.limits, "body"), (config.routes[0].rate, "burst")):
        with pytest.raises(AttributeError):
            setattr(section, key, 1)
    with pytest.raises((AttributeError, TypeError)):
        config.another = 1


def test_two_are_equal_when_every_key_is(file: Path) -> None:
    before = read(file)
    assert read(file) == before
    file.write_text(EVERYTHING.replace("hold: 2s", "hold: 3s"))
    assert read(file) != before


def test_it_shows_no_secret_by_accident(file: Path) -> None:
    config = read(file)
    assert "ourselves" not in f"{config!r} {config} {config.headers!r} {config.headers}"


def test_everything_that_is_wrong_is_told(file: Path) -> None:
    file.write_text(EVERYTHING.replace("hold: 2s", "hold: soon").replace("X-Token", "X Token"))
    with pytest.raises(ConfigError) as here:
        load.load_file(str(file))
    with pytest.raises(ConfigError) as raised:
        read(file)
    assert len(raised.value.problems) == 2
    assert raised.value.problems == here.value.problems


# The process that reads


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> str:
    return Path("/proc/self/task", str(os.getpid()), "children").read_text()


@pytest.mark.parametrize("text", [EVERYTHING, "listen: 1"])
def test_it_leaves_no_process_and_no_descriptor(file: Path, text: str) -> None:
    file.write_text(text)
    before, family = descriptors(), children()
    for _ in range(3):
        try:
            read(file)
        except ConfigError:
            assert text != EVERYTHING
    assert (descriptors(), children()) == (before, family)


def crash() -> NoReturn:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("deed", "says"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was ended by signal 9"),
        (lambda: signal.raise_signal(signal.SIGINT), "was ended by signal 2"),
        (lambda: os.kill(os.getpid(), signal.SIGRTMIN + 6), "was ended by signal 40"),
        (lambda: os._exit(0), "ended with 0"),
        (crash, "ended with 70"),
    ],
)
def test_one_that_ends_before_it_has_read_is_no_fault_of_the_configuration(
    deed: Callable[[], Any], says: str
) -> None:
    before, family = descriptors(), children()
    with pytest.raises(NotRead, match=says):
        apart.read(deed)
    assert (descriptors(), children()) == (before, family)


def test_an_error_of_ours_is_told_where_it_is_seen(capfd: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler()
    logging.getLogger("botproxy").addHandler(handler)
    try:
        with pytest.raises(NotRead, match="see its messages"):
            apart.read(crash)
    finally:
        logging.getLogger("botproxy").removeHandler(handler)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_one_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "PATIENCE", 1)
    with pytest.raises(NotRead, match="not read within 1 s"):
        apart.read(lambda: signal.pause())  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("call", ["fork", "memfd_create"])
def test_a_machine_without_room_is_no_fault_of_the_configuration(
    file: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.EAGAIN, "no room here")

    before = descriptors()
    monkeypatch.setattr(os, call, full)
    with pytest.raises(NotRead, match="no room here"):
        read(file)
    assert descriptors() == before


def test_it_works_where_ended_children_are_nobodys_business(file: Path) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert read(file).workers == "auto"
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("unknown", [b"cbotproxy.nowhere\nThing\n.", b"cbotproxy.errors\nNowhere\n."])
def test_what_a_replaced_program_has_read_is_not_taken(unknown: bytes) -> None:
    with apart.paper() as file:
        file.write(unknown)
        with pytest.raises(NotRead, match="another version of the program"):
            apart.found(file, 0)
