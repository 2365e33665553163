"""certbot as the recipe has it: three commands, and from then on cron alone.

The CA is a pebble of our own, which asks for its challenges over our port 80. botproxy
learns of a new certificate from nobody: no hook, no signal, no command.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from botproxy.keeper.lineage import serial_text
from tests.e2e.conftest import Start
from tests.e2e.pebble import Pebble, issuing
from tests.e2e.served import Crowd
from tests.harness import Bot, Proxied, program
from tests.wire import PATIENCE, Message, Wire

NAME = "bot.example.test"
PROMISE = 2.0
"""Seconds from certbot's last step until every client gets the new certificate: 1, and 1 for this machine,
which shakes hands, issues and renews at once."""
ENOUGH = 50
"""Handshakes that all meet the same one of two workers once in 2**49 runs."""


class Certbot:
    """certbot with directories of its own in the place of /etc/letsencrypt and the like."""

    def __init__(self, file: str, directory: Path, ca: Pebble) -> None:
        self._file = file
        self._directories = [f"--{name}-dir={directory / name}" for name in ("config", "work", "logs")]
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "REQUESTS_CA_BUNDLE": str(ca.api_ca),
        }
        self._server = ca.directory
        self.live = directory / "config/live" / NAME
        self.settings = directory / f"config/renewal/{NAME}.conf"

    def obtain(self, *how: str) -> None:
        """`certbot certonly`, once by hand."""
        self._run(
            "certonly",
            *how,
            f"--domain={NAME}",
            f"--server={self._server}",
            "--non-interactive",
            "--agree-tos",
            "--register-unsafely-without-email",
        )

    def renew(self) -> None:
        """What cron runs each night, on the one when the time has come.

        Without a terminal certbot waits up to 8 minutes first, out of courtesy to Let's Encrypt.
        """
        self._run("renew", "--quiet", "--force-renewal", "--no-random-sleep-on-renew")

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [self._file, *arguments, *self._directories],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            env=self._env,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def serial(self) -> str:
        """Of the newest certificate."""
        newest = x509.load_pem_x509_certificate((self.live / "cert.pem").read_bytes())
        return serial_text(newest.serial_number)

    @property
    def changed(self) -> float:
        """When it was complete: the link to the chain is the last that certbot replaces."""
        return os.lstat(self.live / "fullchain.pem").st_mtime


class Site:
    """botproxy with two workers, serving what certbot keeps."""

    def __init__(self, front: Proxied, certbot: Certbot, ca: Pebble, webroot: Path) -> None:
        self.front = front
        self.certbot = certbot
        self.ca = ca
        self.webroot = webroot

    def ask_plain(self, path: str) -> Message:
        with Wire(self.front.tcp(self.front.plain_port)) as client:
            return client.request(
                f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode()
            )

    def obtain_through_port_80(self) -> None:
        """As soon as botproxy holds port 80, certbot works through it, which it remembers."""
        self.certbot.obtain("--webroot", f"--webroot-path={self.webroot}", "--force-renewal")

    def wait_served(self) -> None:
        serial = f"serial={self.certbot.serial} "
        self.front.log.wait_for(lambda line: "a new certificate is served" in line and serial in line)

    def status(self) -> dict[str, Any]:
        """What `botproxy cert status` says."""
        command = [sys.executable, "-m", "botproxy", "cert", "status", "--json"]
        file = self.front.directory / "botproxy.yaml"
        done = subprocess.run(
            [*command, "--config", str(file)], capture_output=True, timeout=PATIENCE, check=True
        )
        [certificate] = json.loads(done.stdout)["certificates"]
        return dict(certificate)

    def audit(self) -> list[dict[str, Any]]:
        file = Path(self.front.config["state_dir"]) / "audit.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def site(start: Start, open_directory: Path, unused_port: int) -> Iterator[Site]:
    """As the recipe begins: certbot has port 80 to itself for the first certificate, then botproxy starts."""
    needed = program("certbot"), program("pebble"), program("pebble-challtestsrv")
    webroot = open_directory / "acme"
    webroot.mkdir(mode=0o755)
    with issuing(needed[1:], open_directory / "ca", unused_port) as ca, Bot() as bot:
        certbot = Certbot(needed[0], open_directory, ca)
        certbot.obtain("--standalone", f"--http-01-port={unused_port}")
        front = start(
            bot.url,
            plain_listen=[f"127.0.0.1:{unused_port}"],
            workers=2,
            admin=None,
            state_dir=str(open_directory / "state"),
            certificates=[
                {"chain": str(certbot.live / "fullchain.pem"), "key": str(certbot.live / "privkey.pem")}
            ],
            acme_webroot=str(webroot),
        )
        yield Site(front, certbot, ca, webroot)
        front.stop()


def test_a_challenge_is_answered_on_port_80_which_redirects_everything_else(site: Site) -> None:
    answers = []
    with ThreadPoolExecutor(1) as beside:
        obtained = beside.submit(site.obtain_through_port_80)
        while not obtained.done():
            answers.append(site.ask_plain("/hook?x=1"))
        obtained.result()
    assert {answer.status for answer in answers} == {308}
    assert {answer.value("location") for answer in answers} == {f"https://{NAME}/hook?x=1"}
    assert site.ask_plain("/.well-known/acme-challenge/unknown").status == 404
    site.front.wait_record(route="plain", status=200)
    statuses = [record["status"] for record in site.front.records(lambda record: record["route"] == "plain")]
    challenge = statuses.index(200)
    assert 308 in statuses[:challenge]
    assert 308 in statuses[challenge:]
    assert "authenticator = webroot" in site.certbot.settings.read_text()
    site.wait_served()


def test_renewals_by_cron_reach_every_client_and_cost_none(site: Site) -> None:
    site.obtain_through_port_80()
    site.wait_served()
    serials = [site.certbot.serial]
    old, new = site.ca.trust(), site.ca.trust()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with Crowd(site.front, old, new, name=NAME) as crowd:
        for _ in ("first", "second"):
            now = time.time()
            crowd.wait_for(ENOUGH, since=now)
            assert crowd.serials(since=now) == {serials[-1]}
            site.certbot.renew()
            serials.append(site.certbot.serial)
            late = site.certbot.changed + PROMISE
            crowd.wait_for(ENOUGH, since=late)
            assert crowd.serials(since=late) == {serials[-1]}
            site.wait_served()
            status = site.status()
            assert (status["state"], status["matches_files"]) == ("active", True)
            assert (status["served_by"], status["workers"]) == (2, 2)
            assert status["serial"] == serials[-1]
            assert status["issuer"] == site.ca.issuer.subject.rfc4514_string()
    assert crowd.failures == []
    assert crowd.serials() == set(serials)
    lines = [(line["result"], line["trigger"], line["new"]["serial"]) for line in site.audit()]
    assert lines[0][:2] == ("active", "start")
    assert lines[1:] == [("active", "event", serial) for serial in serials]
    log = "\n".join(site.front.log.lines)
    assert "level=error" not in log
    assert "nor trusted by this system" in log, "a warning, for no system trusts pebble"
