"""Has the configuration read in a process of its own, which ends with it.

What reads it, the YAML parser, the validation library and the words for every mistake, is a sixth of
what serving takes in memory, and is needed for a moment. So those that serve never import it
(`tests/e2e/test_memory.py`). They get the same keys as plain frozen data; what they call `Config`, and
its sections, has the attributes of `config.schema` and is only for the type checker the same class.

Rules and wording: `config.load`. After: `server.supervisor`.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from botproxy.errors import ConfigError, Problem

if TYPE_CHECKING:
    from botproxy.config.schema import Config

logger = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds; a file on a network file system that is away is never read, and nobody waits for it for ever."""


def load_file(
    path: str, overrides: Mapping[str, Any], origins: Mapping[str, str], environment: Mapping[str, str]
) -> Config:
    """See `load.load_file`. Raises ConfigError."""

    def read() -> Config:
        from botproxy.config import load

        return load.load_file(path, overrides, origins, environment)

    return _apart(read)


def load_options(
    values: Mapping[str, Any], origins: Mapping[str, str], environment: Mapping[str, str]
) -> Config:
    """See `load.load_options`. Raises ConfigError."""

    def read() -> Config:
        from botproxy.config import load

        return load.load_options(values, origins, environment)

    return _apart(read)


# The process


def _apart(read: Callable[[], Config]) -> Config:
    """What `read` returns or raises, in a process of its own."""
    ours, theirs = os.pipe()
    # Blocked, so that no signal is answered there by what its parent has for it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _read(read, theirs)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(theirs)
    try:
        said = _received(ours)
        if said is None:
            os.kill(pid, signal.SIGKILL)
            raise _unreadable(f"it was not read within {PATIENCE:g} s", "is its file system there?")
    finally:
        os.close(ours)
    # Where nobody asks for ended children, the kernel has buried it already.
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
    if not said:
        raise _unreadable("what reads it was ended", "is there memory left?")
    config, problems = pickle.loads(said)
    if problems:
        raise ConfigError(problems)
    found: Config = config
    return found


def _read(read: Callable[[], Config], pipe: int) -> None:
    """The whole life of the process."""
    try:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        try:
            said = pickle.dumps((_plain(read()), []))
        except ConfigError as error:
            said = pickle.dumps((None, error.problems))
        with open(pipe, "wb") as file:
            file.write(said)
    except BaseException:  # nothing of the parent may be run twice, whatever this is
        logger.exception("the configuration cannot be read, by an error of ours")
    finally:
        os._exit(0)


def _received(pipe: int) -> bytes | None:
    """Everything until the other end is closed; None if that takes too long."""
    said = bytearray()
    while select.select([pipe], [], [], PATIENCE)[0]:
        data = os.read(pipe, 65536)
        if not data:
            return bytes(said)
        said += data
    return None


def _unreadable(says: str, hint: str) -> ConfigError:
    return ConfigError([Problem("", "", says, hint)])


# Plain data


def _plain(value: Any) -> Any:
    """`value`, with a record in place of every section in it."""
    fields = getattr(type(value), "model_fields", None)
    if fields is not None:
        return _record(type(value).__name__, tuple((key, _plain(getattr(value, key))) for key in fields))
    if isinstance(value, tuple):
        return tuple(_plain(each) for each in value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value


def _record(name: str, values: Sequence[tuple[str, Any]]) -> Any:
    keys = tuple(key for key, _ in values)
    return _kind(name, keys)(*(value for _, value in values))


@cache
def _kind(name: str, keys: Sequence[str]) -> type:
    """A frozen class with these attributes, for a section; without a repr, for there may be secrets in it."""

    def reduce(self: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _record, (name, tuple((key, getattr(self, key)) for key in keys))

    return make_dataclass(name, keys, frozen=True, slots=True, repr=False, namespace={"__reduce__": reduce})
