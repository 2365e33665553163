"""One TLS server in front of the bot: its configuration, its processes, its command after a renewal.

Decides how any of them is started, found ready, and stopped. What is special to one is in
its own module beside this, and its configuration in a file where `@name@` is filled in.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.reload import clients
from bench.reload.site import Site

START_PATIENCE = 15.0
STOP_PATIENCE = 10.0
COMMAND_PATIENCE = 15.0
LONGEST_SAYING = 500
"""Characters of what a peer says that are kept."""
_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Told:
    """What a command came to."""

    seconds: float
    succeeded: bool | None
    """None: there was no command, or it does not say."""
    says: str = ""


class Peer(ABC):
    """A server at a site; not running until `start`."""

    name: ClassVar[str]
    program: ClassVar[str]
    template: ClassVar[str]
    """Name of its configuration's file."""
    command: ClassVar[str]
    """What is to be done after a renewal, in words."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.config = site.directory / self.template
        self._log = site.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._context = clients.client(site.lineage.ca, "1.3")

    @classmethod
    def is_here(cls) -> bool:
        return shutil.which(cls.program) is not None

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """As the program says it."""

    @property
    def workers(self) -> int:
        """How many processes serve."""
        return self.site.workers

    @property
    @abstractmethod
    def arguments(self) -> Sequence[str]:
        """What to run; it stays in the foreground."""

    @abstractmethod
    def tell(self) -> Told:
        """Give the command."""

    def settings(self) -> Mapping[str, str]:
        """What else its configuration wants filled in."""
        return {}

    def environment(self) -> Mapping[str, str]:
        """What is added to the environment it is started with."""
        return {}

    def start(self) -> str | None:
        """Run it. None once it serves, else why it does not."""
        self.config.write_text(self._filled())
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment()},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_PATIENCE
        while clients.attempt(self.site.port, self._context, "/start").failure is not None:
            if (code := self._process.poll()) is not None:
                return f"ended with {code}: {self.said()}"
            if time.monotonic() > deadline:
                return f"does not serve: {self.said()}"
            time.sleep(0.02)
        return None

    def stop(self) -> None:
        """End it and all of its processes, by force if need be."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the session that `start` made for it
            process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def run(self, *command: str) -> Told:
        """Give a command in a process of its own."""
        began = time.monotonic()
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self.environment()},
            timeout=COMMAND_PATIENCE,
            check=False,
        )
        seconds = time.monotonic() - began
        succeeded = done.returncode == 0
        return Told(seconds, succeeded, "" if succeeded else self.shorten(done.stdout.decode()))

    def said(self) -> str:
        """The end of its log."""
        return self.shorten(self._log.read_text(errors="replace"))

    def shorten(self, text: str) -> str:
        """The end of `text` without what is different in every run."""
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text).replace(str(self.site.directory), "SITE")
        return " ".join(plain.split())[-LONGEST_SAYING:]

    def _filled(self) -> str:
        values = {
            "directory": str(self.site.directory),
            "port": str(self.site.port),
            "workers": str(self.site.workers),
            "bot": str(self.site.bot),
            "fullchain": str(self.site.lineage.fullchain),
            "privkey": str(self.site.lineage.privkey),
            **self.settings(),
        }
        template = (_FOLDER / self.template).read_text()
        return re.sub(r"@(\w+)@", lambda match: values[match[1]], template)


def first_line(*command: str) -> str:
    """Of what `command` prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout.partition("\n")[0].strip()


def unprivileged() -> tuple[str, str] | None:
    """Account and group that workers shall become; None when not started as root."""
    if os.geteuid() != 0:
        return None
    account = pwd.getpwnam("nobody")
    return account.pw_name, grp.getgrgid(account.pw_gid).gr_name
