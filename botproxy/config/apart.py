"""Has the configuration read in a process of its own, which ends with it.

What reads it, the YAML parser, the validation library and the words for every mistake, is a sixth of
what serving takes in memory, and is needed for a moment. So those that serve never import it
(`tests/e2e/test_memory.py`). They get the same keys as plain frozen data; what they call `Config`, and
its sections, has the attributes of `config.schema` and is only for the type checker the same class.

`read` does it for a start. For a reload the supervisor forks a child of its own, which does `write`, and
has `found` say what came of it. Rules and wording: `config.load`.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from dataclasses import make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, BinaryIO

from botproxy.errors import ConfigError, NotRead

if TYPE_CHECKING:
    from botproxy.config.schema import Config

logger = logging.getLogger(__name__)

PATIENCE = 30
"""Seconds; a file on a network file system that is away is never read."""
CRASHED = 70
"""Exit status of a reader that ended by an error of ours (EX_SOFTWARE)."""


def read(what: Callable[[], Config]) -> Config:
    """What `what` returns, as plain data. Blocks; raises ConfigError as that does, and NotRead."""
    with paper() as file:
        try:
            pid = os.fork()
        except OSError as error:
            raise NotRead(f"no process can be started to read it ({error.strerror})") from error
        if pid == 0:
            _live(what, file)
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except ChildProcessError:
            code = 0  # where nobody asks for ended children the kernel buries them; what is written says all
        return found(file, code)


def paper() -> BinaryIO:
    """What is written on by one process and read from by the other: memory that no file system holds."""
    try:
        return open(os.memfd_create("configuration"), "w+b")
    except OSError as error:
        raise NotRead(f"there is no room to read it ({error.strerror})") from error


def write(what: Callable[[], Config], file: BinaryIO) -> int:
    """Call `what`, in a process that is only there for that, and write down what comes of it; exit status."""
    signal.alarm(PATIENCE)
    config, problems = None, []
    try:
        config = _plain(what())
    except ConfigError as error:
        problems = error.problems
    pickle.dump((config, problems), file)
    file.flush()
    return 0


def found(file: BinaryIO, code: int) -> Config:
    """What is written in `file` by a process that ended with `code`. Raises ConfigError, NotRead."""
    if code == -signal.SIGALRM:
        raise NotRead(
            f"it was not read within {PATIENCE} s: is its file system there, is the machine so slow?"
        )
    if code < 0:
        raise NotRead(f"the process that read it was ended by signal {-code}")
    file.seek(0)
    said = file.read()
    if code or not said:
        raise NotRead(f"the process that read it ended with {code}; see its messages")
    try:
        config, problems = pickle.loads(said)
    except (AttributeError, ImportError) as error:  # it knows what we do not
        says = (
            "it was read by another version of the program, which has been replaced on disk: start that one"
        )
        raise NotRead(says) from error
    if problems:
        raise ConfigError(problems)
    plain: Config = config
    return plain


def _live(what: Callable[[], Config], file: BinaryIO) -> None:
    """The whole life of a process that reads for a start; never returns."""
    code = CRASHED
    try:
        # Ctrl-C is for its parent too, which says so; the alarm is its own, whatever it was born with.
        for number in (signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        code = write(what, file)
    except BaseException:  # nothing of the parent may be run twice, whatever this is
        logger.exception("the configuration cannot be read, by an error of ours")
    finally:
        os._exit(code)


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
