"""Where botproxy keeps what outlives a start, and where its admin socket lies.

Says the paths to everyone who needs them (keeper, `botproxy health`, `botproxy demo`)
and makes the directory for those who write. Nothing is written into it here. Asks for
two keys of the configuration only, so that `botproxy health` need not load the rest.
"""

from __future__ import annotations

import os
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from botproxy.errors import ConfigError, Problem


class Placed(Protocol):
    """The keys that say where things lie; `schema.Config` has them."""

    @property
    def state_dir(self) -> str | None: ...

    @property
    def admin(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Placement:
    """These keys without a configuration around them."""

    state_dir: str | None = None
    admin: str | None = None


def state_dir(config: Placed) -> Path:
    """The state directory, which need not exist yet. Raises ConfigError when there is no home."""
    if config.state_dir is not None:
        return Path(config.state_dir)
    if os.geteuid() == 0:
        return Path("/var/lib/botproxy")
    base = os.environ.get("XDG_STATE_HOME", "")
    if base.startswith("/"):  # the XDG specification: relative paths are to be ignored
        return Path(base, "botproxy")
    try:
        return Path.home() / ".local/state/botproxy"
    except RuntimeError:
        raise _wrong("the account has no home directory to keep state in", "set state_dir") from None


def make_state_dir(config: Placed) -> Path:
    """The state directory, made (0700) if it does not exist. Raises ConfigError when it cannot be used."""
    path = state_dir(config)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise _wrong(
            f'the directory "{path}" cannot be made ({error.strerror})',
            f"make it for the account that starts botproxy (uid {os.geteuid()}), or set state_dir",
        ) from None
    if status.st_mode & 0o022 or status.st_uid not in (0, os.geteuid()):
        raise _wrong(
            f'expected a directory that only uid {os.geteuid()} can write to, found "{path}" '
            f"({stat.filemode(status.st_mode)}, owner {status.st_uid})",
            f"chown {os.geteuid()} {shlex.quote(str(path))}; chmod 700 {shlex.quote(str(path))}",
        )
    return path


def admin_socket(config: Placed) -> Path | None:
    """The Unix socket of the admin endpoint; None when it is off."""
    if config.admin == "off":
        return None
    if config.admin is not None:
        return Path(config.admin.removeprefix("unix:"))
    return state_dir(config) / "admin.sock"


def _wrong(says: str, hint: str) -> ConfigError:
    return ConfigError([Problem(where="", path="state_dir", says=says, hint=hint)])
