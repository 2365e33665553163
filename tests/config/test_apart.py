"""The configuration as those have it that serve: read by a process that has ended, as plain data."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from botproxy.config import apart, load
from botproxy.config.schema import Section
from botproxy.errors import ConfigError

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


def read(path: Path, environment: Mapping[str, str] | None = None) -> Any:
    return apart.load_file(str(path), {}, {}, {} if environment is None else environment)


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
    environment = {"BOTPROXY_LOG__LEVEL": "debug"}
    plain = apart.load_file(str(file), {"workers": 3}, {"workers": "--workers"}, environment)
    assert same(plain, load.load_file(str(file), {"workers": 3}, {"workers": "--workers"}, environment))
    assert (plain.workers, plain.log.level, plain.headers.hsts.enabled) == (3, "debug", False)


def test_options_alone_are_read_too() -> None:
    values = {"certificates": [{"chain": "/chain.pem", "key": "/key.pem"}]}
    assert same(apart.load_options(values, {}, {}), load.load_options(values))


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
    assert modules == {"builtins", "types", "ipaddress"}


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


class Reader(dict[str, str]):
    """Variables that do something to the process that looks at them."""

    def __init__(self, deed: Callable[[], object]) -> None:
        super().__init__()
        self._deed = deed

    def items(self) -> Any:
        self._deed()
        return super().items()


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


def test_one_that_is_killed_is_a_problem_and_no_configuration(file: Path) -> None:
    with pytest.raises(ConfigError, match="ended") as raised:
        read(file, Reader(lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert raised.value.problems[0].hint


def test_an_error_of_ours_is_told_where_it_is_seen(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler()
    logging.getLogger("botproxy").addHandler(handler)
    try:
        with pytest.raises(ConfigError, match="ended"):
            read(file, Reader(lambda: 1 // 0))
    finally:
        logging.getLogger("botproxy").removeHandler(handler)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_one_that_takes_too_long_is_given_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "PATIENCE", 0.2)
    before, began = descriptors(), time.monotonic()
    with pytest.raises(ConfigError, match=re.escape("not read within 0.2 s")):
        read(file, Reader(signal.pause))
    assert time.monotonic() - began < 10
    assert descriptors() == before
    os.waitpid(-1, 0)  # it was killed


def test_signals_there_are_not_for_us(file: Path) -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        with pytest.raises(ConfigError, match="ended"):
            read(file, Reader(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == []


def test_it_works_where_ended_children_are_nobodys_business(file: Path) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert read(file).workers == "auto"
    finally:
        signal.signal(signal.SIGCHLD, before)
