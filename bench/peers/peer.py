"""One TLS server in front of the bot: its configuration, its processes, its command after a renewal.

Decides how any of them is started, found ready, and stopped. What is special to one is in
its own module beside this, and its configuration in a folder of whoever compares, in a file
where `@name@` is filled in.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.lineage import NAME
from bench.site import Site

START_PATIENCE = 15.0
STOP_PATIENCE = 10.0
COMMAND_PATIENCE = 15.0
LONGEST_SAYING = 500
"""Characters of what a peer says that are kept."""
_REQUEST = f"GET /start HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode("ascii")


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

    def __init__(self, site: Site, configurations: Path) -> None:
        """`configurations`: the folder that has `template`."""
        self.site = site
        self._template = configurations / self.template
        self.config = site.directory / self.template
        self._log = site.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._context = ssl.create_default_context(cafile=site.lineage.ca)

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

    def configure(self) -> None:
        """Write what `arguments` read."""
        self.config.write_text(self._filled())

    def start(self, *before: str) -> str | None:
        """Run it, behind the command `before`. None once it serves, else why it does not."""
        self.configure()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                (*before, *self.arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment()},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_PATIENCE
        while not self.serves():
            if (code := self._process.poll()) is not None:
                return f"ended with {code}: {self.said()}"
            if time.monotonic() > deadline:
                return f"does not serve: {self.said()}"
            time.sleep(0.02)
        return None

    def serves(self) -> bool:
        """Whether it answers one request over TLS."""
        try:
            with (
                socket.create_connection(("127.0.0.1", self.site.port), timeout=START_PATIENCE) as plain,
                self._context.wrap_socket(plain, server_hostname=NAME) as tls,
            ):
                tls.sendall(_REQUEST)
                return tls.recv(4096).startswith(b"HTTP/1.1 200 ")
        except OSError:
            return False

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
            "bot": self.site.bot,
            "fullchain": str(self.site.lineage.fullchain),
            "privkey": str(self.site.lineage.privkey),
            **self.settings(),
        }
        template = self._template.read_text()
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
