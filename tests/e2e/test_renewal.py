"""Renewed files reach every client by themselves, whatever wrote them, told by the kernel or not."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests import certs
from tests.certs import Authority, Issued
from tests.e2e import layouts
from tests.e2e.conftest import Start
from tests.e2e.layouts import Layout
from tests.e2e.served import serial, served, wait_served
from tests.harness import Bot, Proxied, descriptors_of
from tests.wire import get

KINDS: dict[str, type[Layout]] = {
    "in-place": layouts.InPlace,
    "rename-over": layouts.RenameOver,
    "remove-and-create": layouts.RemoveAndCreate,
    "old-time": layouts.OldTime,
    "certbot": layouts.Certbot,
    "kubernetes": layouts.Kubernetes,
    "directory-link": layouts.DirectoryLink,
    "directory-anew": layouts.DirectoryAnew,
    "directory-swapped": layouts.DirectorySwapped,
    "directory-above-swapped": layouts.DirectoryAboveSwapped,
    "mounted-alone": layouts.MountedAlone,
}
WATCHES = {
    "events": {"poll": "1h"},
    "poll": {"events": False, "poll": "300ms"},
}


@pytest.fixture(scope="module")
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


class Sites:
    """One botproxy in front of every layout, each with a host name of its own."""

    def __init__(self, front: Proxied, kinds: dict[str, Layout], ca: Authority) -> None:
        self.front = front
        self.kinds = kinds
        self.ca = ca

    def renew(self, kind: str) -> Issued:
        issued = self.ca.issue(f"{kind}.test")
        self.kinds[kind].renew(issued)
        return issued


@pytest.fixture(scope="module", params=WATCHES)
def sites(
    request: pytest.FixtureRequest,
    start_once: Start,
    bot: Bot,
    ca: Authority,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Sites]:
    directory = tmp_path_factory.mktemp("layouts")
    with ExitStack() as stack:
        kinds = {}
        for name, kind in KINDS.items():
            if kind is layouts.MountedAlone and (request.param == "events" or os.geteuid() != 0):
                continue  # the kernel tells nothing of changes from outside; only root can mount
            kinds[name] = kind(directory / name, ca.issue(f"{name}.test"))
            stack.callback(kinds[name].end)
        front = start_once(
            bot.url,
            certificates=[layout.entry for layout in kinds.values()],
            workers=2,
            admin=None,
            watch=WATCHES[request.param],
        )
        yield Sites(front, kinds, ca)
        front.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_renewal_is_served_without_a_word_and_so_is_the_next(
    sites: Sites, kind: str, trust: ssl.SSLContext
) -> None:
    if kind not in sites.kinds:
        pytest.skip("not with this kind of watch, or not without root")
    for _ in ("first", "second"):
        issued = sites.renew(kind)
        wait_served(sites.front, issued)
        for _ in range(8):  # both workers
            assert served(sites.front, f"{kind}.test", trust) == issued.leaf
    status = sites.front.certificate(kind)
    assert (status["state"], status["matches_files"], status["served_by"]) == ("active", True, 2)


def test_polling_alone_takes_at_most_eleven_seconds(
    start: Start, bot: Bot, ca: Authority, tmp_path: Path
) -> None:
    site = layouts.InPlace(tmp_path / "site", ca.issue("localhost"))
    front = start(bot.url, certificates=[site.entry], watch={"events": False})
    issued = ca.issue("localhost")
    began = time.monotonic()
    site.renew(issued)
    wait_served(front, issued)
    assert time.monotonic() - began < 12, "10 s of polling, 1 s of work, 1 s of grace for this machine"


def test_what_is_written_beside_the_files_all_the_time_delays_nothing(
    start: Start, bot: Bot, ca: Authority, tmp_path: Path
) -> None:
    site = layouts.InPlace(tmp_path / "site", ca.issue("localhost"))
    front = start(bot.url, certificates=[site.entry], watch={"poll": "1h"})
    begun, over = Event(), Event()

    def write() -> None:
        number = 0
        while not over.wait(0.05):
            number += 1
            (site.directory / f"noise-{number % 7}").write_bytes(b"noise" * number)
            begun.set()

    with ThreadPoolExecutor() as beside:
        writing = beside.submit(write)
        try:
            assert begun.wait(10)
            issued = ca.issue("localhost")
            began = time.monotonic()
            site.renew(issued)
            wait_served(front, issued)
            assert time.monotonic() - began < 3, "1 s, and 2 s of grace for this machine"
        finally:
            over.set()
        writing.result()


def test_a_change_of_the_key_type_reaches_every_client(
    start: Start, bot: Bot, ca: Authority, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    site = layouts.RenameOver(tmp_path / "site", ca.issue("localhost"))
    front = start(bot.url, certificates=[site.entry], workers=2)
    for key, kind in ((certs.rsa_key(), rsa.RSAPublicKey), (certs.ecdsa_key(), ec.EllipticCurvePublicKey)):
        issued = ca.issue("localhost", key=key)
        site.renew(issued)
        wait_served(front, issued)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            trust.minimum_version, trust.maximum_version = ssl.TLSVersion.TLSv1_2, version
            found = served(front, "localhost", trust)
            assert found == issued.leaf
            assert isinstance(found.public_key(), kind)
        trust.maximum_version = ssl.TLSVersion.TLSv1_3


def test_one_of_two_key_types_of_a_name_is_renewed_alone(
    start: Start, bot: Bot, ca: Authority, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    ecdsa = layouts.InPlace(tmp_path / "ecdsa", ca.issue("localhost"))
    first = ca.issue("localhost", key=certs.rsa_key())
    other = layouts.InPlace(tmp_path / "rsa", first)
    front = start(bot.url, certificates=[ecdsa.entry, other.entry], workers=2)
    issued = ca.issue("localhost")
    ecdsa.renew(issued)
    wait_served(front, issued)
    for ciphers, leaf in (("ECDHE+aECDSA", issued.leaf), ("ECDHE+aRSA", first.leaf)):
        context = ca.trust()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
        assert served(front, "localhost", context) == leaf
    issued = ca.issue("localhost", key=certs.rsa_key())
    other.renew(issued)
    wait_served(front, issued)
    assert served(front, "localhost", context) == issued.leaf


def test_an_open_connection_outlives_the_renewal(
    start: Start, bot: Bot, ca: Authority, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    site = layouts.Certbot(tmp_path / "site", ca.issue("localhost"))
    front = start(bot.url, certificates=[site.entry])
    with front.connect(trust) as client:
        assert client.request(get()).status == 200
        issued = ca.issue("localhost")
        site.renew(issued)
        wait_served(front, issued)
        assert client.request(get()).status == 200


def test_a_dual_stack_listener_and_one_that_demands_a_proxy_header_are_verified(
    start: Start, bot: Bot, ca: Authority, tmp_path: Path, unused_port: int
) -> None:
    """The keeper asks the real listener, so it has to come in as clients do."""
    site = layouts.InPlace(tmp_path / "site", ca.issue("localhost"))
    for listen in (
        f":{unused_port}",
        f"[::1]:{unused_port}",
        {"address": f":{unused_port}", "proxy_protocol_from": ["127.0.0.0/8"]},
    ):
        front = start(bot.url, certificates=[site.entry], listen=[listen], workers=2, admin=None)
        issued = ca.issue("localhost")
        site.renew(issued)
        wait_served(front, issued)
        assert front.certificate("site")["last"]["result"] == "active"
        front.stop()


def test_the_audit_has_a_line_with_what_was_and_what_is(
    start: Start, bot: Bot, ca: Authority, tmp_path: Path
) -> None:
    first = ca.issue("localhost")
    site = layouts.InPlace(tmp_path / "site", first)
    front = start(bot.url, certificates=[site.entry], workers=2, admin=None)
    issued = ca.issue("localhost")
    site.renew(issued)
    wait_served(front, issued)
    last = front.certificate("site")["last"]
    began, line = (Path(front.config["state_dir"]) / "audit.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["old"]["serial"], entry["new"]["serial"]) == (serial(first), serial(issued))
    assert json.loads(began)["old"] is None
    assert (json.loads(began)["trigger"], json.loads(began)["new"]) == ("start", entry["old"])
    assert entry["result"] == last["result"] == "active"
    assert entry["trigger"] == "event"
    assert set(entry["seconds"]) == {"noticing", "validating", "preparing", "committing", "verifying"}
    assert {worker["pid"] for worker in entry["workers"]} == set(front.workers())
    for worker in entry["workers"]:
        assert worker["fingerprints"] == [entry["new"]["fingerprint"]]
    for key in ("spki", "issuer", "not_after"):
        assert entry["old"][key]
        assert entry["new"][key]
    assert "PRIVATE" not in line


def test_untidy_renewals_under_load_fail_nobody_and_no_worker_goes_back() -> None:
    """A few of the hundreds that the script runs by default."""
    script = [sys.executable, "-m", "bench.reload.renewals", "12", "7"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_reloads_leave_no_descriptor_behind(start: Start, bot: Bot, ca: Authority, tmp_path: Path) -> None:
    site = layouts.InPlace(tmp_path / "site", ca.issue("localhost"))
    front = start(
        bot.url, certificates=[site.entry], workers=2, admin=None, watch={"events": False, "poll": "1h"}
    )
    counts = []
    for _ in range(30):
        site.renew(ca.issue("localhost"))
        assert front.reload()["site"]["outcome"] == "active"
        counts.append([descriptors_of(pid) for pid in (front.keeper, *sorted(front.workers()))])
    for process in zip(*counts[5:], strict=True):
        assert max(process) == min(process), counts
