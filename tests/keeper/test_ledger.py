"""What is remembered over a restart, and a disk that fails without harm to what is served."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from botproxy.config import schema
from botproxy.keeper.boot import restore
from botproxy.keeper.ledger import LINES, Ledger
from botproxy.keeper.lineage import Active, Lineage
from botproxy.keeper.rollout import Rollout
from botproxy.keeper.schedule import Order
from botproxy.keeper.source import Pair
from botproxy.keeper.store import Refusal, Store
from tests import certs
from tests.certs import NOW, Authority
from tests.keeper.conftest import active, lineage, no_room

REFUSAL = Refusal("ab", "rolled_back", "the listener shows another", "see", NOW.isoformat(), final=True)
ROLLOUT = Rollout("unverified", "nobody was there", seconds={"verifying": 0.5}, workers=((4711, ("ab",)),))
FAILED = "a certificate is served, and cannot be written down"
RECOVERED = "a certificate can be written down again"
KEY_STAYS = "the older keys of a certificate cannot be removed"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state" / "certs")


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return Ledger(store)


@pytest.fixture
def site(ca: Authority) -> Lineage:
    """What is served of it is not in the store yet."""
    return lineage(ca.issue("a.test"), 0)


@pytest.fixture
def broken(store: Store) -> Callable[[bool], None]:
    """`broken(True)`: store and audit cannot be written, nor read; `broken(False)`: empty, and can."""

    def be(now: bool) -> None:
        store.directory.parent.mkdir(exist_ok=True)
        audit = store.directory.parent / "audit.jsonl"
        if now:
            store.directory.touch()
            audit.mkdir()
        else:
            store.directory.unlink()
            audit.rmdir()

    return be


def audited(store: Store) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store.directory.parent / "audit.jsonl").read_text().splitlines()]


def mislaid(store: Store, number: int) -> Callable[[], None]:
    """A generation that cannot be removed: it lies elsewhere, behind a link. Call it to end that."""
    place, elsewhere = store.directory / "site" / str(number), store.directory / "elsewhere"
    place.rename(elsewhere)
    place.symlink_to(elsewhere)

    def end() -> None:
        place.unlink()
        elsewhere.rename(place)

    return end


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Since it was last asked."""
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


def keep(ledger: Ledger, site: Lineage, times: int = 1) -> None:
    for _ in range(times):
        number = asyncio.run(ledger.keep(site, replace(site.active, number=0), "event"))
        site.active = replace(site.active, number=number)


# What is remembered


def test_what_was_kept_is_restored_as_it_was_served(ledger: Ledger, store: Store, site: Lineage):
    keep(ledger, site)
    assert site.active.number == store.current("site") == 1
    generation = store.read("site", 1)
    assert generation is not None
    assert restore(generation, site.entry) == site.active
    assert generation.meta["trigger"] == "event"
    assert generation.meta["names"] == ["a.test"]
    assert generation.meta["fingerprint"] == site.active.certificate.fingerprint


def encrypted(site: Lineage, authority: Authority, password: bytes) -> Active:
    """A new certificate as it is served from a key file with this password."""
    issued = authority.issue("a.test")
    pair = Pair(issued.chain_pem, certs.key_pem(issued.key, password), password, ())
    served = replace(site.active, certificate=issued.certificate, key=pair.key, password=password)
    return replace(served, chain=pair.chain, digest=pair.digest, number=0)


def test_an_encrypted_key_is_kept_with_its_password(
    ledger: Ledger, store: Store, site: Lineage, ca: Authority
):
    for number, password in enumerate((b"sesame", b"another"), 1):
        new = encrypted(site, ca, password)
        assert asyncio.run(ledger.keep(site, new, "event")) == number
        generation = store.read("site", number)
        assert generation is not None
        assert restore(generation, site.entry) == replace(new, number=number)


def test_generations_from_before_get_the_password_that_opens_them(
    ledger: Ledger, store: Store, site: Lineage, ca: Authority, tmp_path: Path
):
    """An earlier botproxy kept none; once it is changed nobody knows it any more."""
    (tmp_path / "password").write_bytes(b"sesame\n")
    site.entry = site.entry.model_copy(update={"password_file": str(tmp_path / "password")})
    for password in (b"sesame", b"another", b"sesame"):
        new = encrypted(site, ca, password)
        meta = {"accepted": NOW.isoformat(), "source": {"chain": site.entry.chain, "key": site.entry.key}}
        store.keep("site", new.chain, new.key, meta)
    asyncio.run(ledger.add_passwords(site))
    (tmp_path / "password").write_bytes(b"changed\n")
    asyncio.run(ledger.add_passwords(site))
    kept = [store.read("site", number) for number in (1, 2, 3)]
    assert [each.password for each in kept if each is not None] == [b"sesame", None, b"sesame"]


def test_an_older_generation_is_pointed_to_and_not_kept_twice(ledger: Ledger, store: Store, site: Lineage):
    keep(ledger, site, times=2)
    assert asyncio.run(ledger.keep(site, replace(site.active, number=1), "rollback")) == 1
    assert store.current("site") == 1
    assert store.numbers("site") == [1, 2]


def test_a_way_back_is_remembered_together_with_what_was_refused(ledger: Ledger, store: Store, site: Lineage):
    keep(ledger, site, times=2)
    site.refusal = REFUSAL
    asyncio.run(ledger.go_back(site, 1))
    assert store.current("site") == 1
    assert store.refusal("site") == REFUSAL
    asyncio.run(ledger.forget_refusal(site))
    assert store.refusal("site") is None
    asyncio.run(ledger.go_back(site, 0))  # what was served before could not be kept
    assert store.current("site") == 1
    assert store.refusal("site") == REFUSAL


def test_all_but_what_is_served_are_forgotten_on_demand(ledger: Ledger, store: Store, site: Lineage):
    keep(ledger, site, times=3)
    asyncio.run(ledger.forget_others(site))
    assert store.numbers("site") == [3]


@pytest.mark.parametrize(
    ("served", "wanted", "number"),
    [(4, None, 3), (2, None, 1), (1, None, None), (0, None, 4), (4, 2, 2), (2, 4, 4), (4, 9, None)],
)
def test_the_generation_to_go_back_to_is_the_named_one_or_the_one_before(
    ledger: Ledger, site: Lineage, ca: Authority, served: int, wanted: int | None, number: int | None
):
    generations = []
    for issued in (ca.issue("a.test") for _ in range(4)):
        site.active = active(issued, 0)
        keep(ledger, site)
        generations.append(site.active)
    site.active = generations[served - 1] if served else active(ca.issue("a.test"), 0)
    found, numbers = asyncio.run(ledger.find(site, wanted))
    assert (found.number if found else None) == number
    assert numbers == [1, 2, 3, 4]


def test_the_one_before_is_another_one_of_these_files_that_was_served(
    ledger: Ledger, store: Store, site: Lineage, ca: Authority
):
    first, bad = site.active, active(ca.issue("a.test"), 0)
    keep(ledger, site)
    site.active = active(ca.issue("a.test"), 0)
    keep(ledger, site)  # 2
    site.active = bad
    keep(ledger, site)  # 3
    asyncio.run(ledger.go_back(site, 2, rolled_back=3))
    other = schema.Certificate(chain="/etc/ssl/other.pem", key="/etc/ssl/other.key")
    moved = Lineage(0, "site", other, active(ca.issue("a.test"), 0))
    keep(ledger, moved)  # 4
    generation = store.read("site", 2)
    assert generation is not None
    restored = restore(generation, site.entry)
    assert restored is not None
    site.active = replace(restored, number=0)
    keep(ledger, site)  # 5
    found, _ = asyncio.run(ledger.find(site, None))
    assert found is not None
    assert (found.number, found.chain) == (1, first.chain)
    assert asyncio.run(ledger.find(site, 3))[0] == store.read("site", 3)


def test_the_audit_says_what_was_changed_why_and_how_long_it_took(
    ledger: Ledger, store: Store, site: Lineage, ca: Authority
):
    keep(ledger, site)
    new = active(ca.issue("a.test", "b.test"), 2)
    order = Order("command", 100.0, force=True, spent={"noticing": 0.123456})
    rollout = Rollout("active", seconds={"preparing": 0.5}, replaced=1, workers=((4711, ("ab", "cd")),))
    asyncio.run(ledger.audit(site, "active", site.active, new, order, NOW, "why", rollout))
    asyncio.run(ledger.audit(site, "rejected", site.active, new, Order("event", 1.0), NOW))
    text = (store.directory.parent / "audit.jsonl").read_text()
    first, second = map(json.loads, text.splitlines())
    assert (
        first.items()
        >= {
            "time": NOW.isoformat(timespec="milliseconds"),
            "certificate": "site",
            "result": "active",
            "reason": "why",
            "trigger": "command",
            "forced": True,
            "seconds": {"noticing": 0.1235, "preparing": 0.5},
            "replaced": 1,
            "workers": [{"pid": 4711, "fingerprints": ["ab", "cd"]}],
        }.items()
    )
    assert (first["old"]["generation"], first["old"]["names"]) == (1, ["a.test"])
    assert (first["new"]["generation"], first["new"]["fingerprint"]) == (2, new.certificate.fingerprint)
    assert (second["seconds"], second["workers"], second["forced"]) == ({}, [], False)
    assert site.last == {key: second[key] for key in ("time", "result", "reason", "trigger", "seconds")}
    assert "PRIVATE" not in text


def test_a_start_is_audited_when_it_serves_something_else_than_the_last_line_says(
    ledger: Ledger, store: Store, site: Lineage, ca: Authority
):
    old = site.active

    def lines() -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in (store.directory.parent / "audit.jsonl").read_text().splitlines()
        ]

    def start() -> None:
        before = asyncio.run(ledger.audited(site))
        if before is None or before["fingerprint"] != site.active.certificate.fingerprint:
            asyncio.run(ledger.audit_start(site, before, NOW, ROLLOUT))

    for _ in range(2):
        start()
    [first] = lines()
    assert (first["result"], first["trigger"], first["old"]) == ("unverified", "start", None)
    assert (first["reason"], first["seconds"]) == ("nobody was there", {"verifying": 0.5})
    assert first["workers"] == [{"pid": 4711, "fingerprints": ["ab"]}]
    assert first["new"]["fingerprint"] == old.certificate.fingerprint
    assert site.last is not None
    site.active = active(ca.issue("a.test"))
    for _ in range(2):
        start()
    [_, second] = lines()
    assert second["old"] == first["new"]
    assert second["new"]["fingerprint"] == site.active.certificate.fingerprint
    asyncio.run(ledger.audit(site, "rejected", site.active, old, Order("event", 1.0), NOW))
    start()
    assert len(lines()) == 3


# A disk that fails


def test_a_disk_that_fails_is_told_once_and_so_is_its_recovery(
    ledger: Ledger, site: Lineage, broken: Callable[[bool], None], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "botproxy")
    broken(True)
    keep(ledger, site, times=3)
    assert site.active.number == 0
    assert messages(caplog) == [FAILED]
    broken(False)
    keep(ledger, site, times=2)
    assert site.active.number == 2
    assert messages(caplog) == [RECOVERED]


@pytest.mark.parametrize(
    "write",
    [
        lambda ledger, site: ledger.keep(site, site.active, "event"),
        lambda ledger, site: ledger.audit_start(site, None, NOW, ROLLOUT),
        lambda ledger, site: ledger.go_back(site, 1),
        lambda ledger, site: ledger.forget_refusal(site),
        lambda ledger, site: ledger.forget_others(site),
        lambda ledger, site: ledger.audit(
            site, "rejected", site.active, site.active, Order("event", 1.0), NOW
        ),
    ],
    ids=["keep", "start", "go back", "forget the refusal", "forget others", "audit"],
)
def test_nothing_that_cannot_be_written_is_an_error_for_the_caller(
    ledger: Ledger,
    site: Lineage,
    broken: Callable[[bool], None],
    caplog: pytest.LogCaptureFixture,
    write: Callable[[Ledger, Lineage], Awaitable[Any]],
):
    async def story() -> None:
        await write(ledger, site)

    broken(True)
    asyncio.run(story())
    assert messages(caplog) in ([FAILED], [KEY_STAYS])


def test_lines_of_the_audit_wait_for_the_disk_in_their_order(
    ledger: Ledger, store: Store, site: Lineage, broken: Callable[[bool], None]
):
    def say(reason: str) -> None:
        order = Order("event", 1.0)
        asyncio.run(ledger.audit(site, "rejected", site.active, site.active, order, NOW, reason))

    keep(ledger, site)
    store.directory.rename(store.directory.parent / "away")
    broken(True)
    for number in range(LINES + 3):
        say(str(number))
    [trouble] = site.troubles(0.0, NOW)
    assert "audit" in trouble
    asyncio.run(ledger.retry(site))
    assert [trouble] == site.troubles(0.0, NOW)
    broken(False)
    asyncio.run(ledger.retry(site))
    say("new")
    reasons = [line["reason"] for line in audited(store)]
    assert reasons == [str(number) for number in range(3, LINES + 3)] + ["new"]
    assert site.troubles(0.0, NOW) == []
    asyncio.run(ledger.retry(site))
    assert len(audited(store)) == LINES + 1


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_refusal_waits_for_the_disk_as_it_is_by_then(
    ledger: Ledger, store: Store, site: Lineage, forgotten: bool
):
    keep(ledger, site, times=2)
    home = store.directory / "site"
    home.rename(store.directory / "away")
    home.touch()
    site.refusal, site.active = REFUSAL, replace(site.active, number=1)
    asyncio.run(ledger.go_back(site, 1, rolled_back=2))
    [refused, trouble] = site.troubles(0.0, NOW)
    assert "refused" in refused
    assert "state directory" in trouble
    if forgotten:
        site.refusal = None
        asyncio.run(ledger.forget_refusal(site))
    home.unlink()
    (store.directory / "away").rename(home)
    store.refuse("site", replace(REFUSAL, digest="an older one"))
    asyncio.run(ledger.retry(site))
    assert store.current("site") == 1
    assert store.refusal("site") == (None if forgotten else REFUSAL)
    generation = store.read("site", 2)
    assert generation is not None
    assert generation.is_rolled_back
    assert not site.unwritten


def test_a_key_that_cannot_be_removed_is_told_and_tried_again(
    ledger: Ledger, store: Store, site: Lineage, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "botproxy")
    keep(ledger, site, times=4)
    end = mislaid(store, 1)
    assert "symbolic link" in asyncio.run(ledger.forget_others(site))
    assert store.numbers("site") == [1, 4], "the others are gone all the same"
    assert messages(caplog) == [KEY_STAYS]
    [trouble] = site.troubles(0.0, NOW)
    assert trouble.startswith("site: older keys could not be removed from the state directory: ")
    asyncio.run(ledger.retry(site))
    assert (messages(caplog), site.troubles(0.0, NOW)) == ([], [trouble])
    end()
    asyncio.run(ledger.retry(site))
    assert store.numbers("site") == [4]
    assert site.troubles(0.0, NOW) == []
    assert messages(caplog) == [RECOVERED]
    assert asyncio.run(ledger.forget_others(site)) == ""


def test_a_pointer_that_the_disk_does_not_take_is_not_called_kept(
    ledger: Ledger, site: Lineage, broken: Callable[[bool], None]
):
    """Else it would not be tried again, and a restart would serve another one."""
    broken(True)
    assert asyncio.run(ledger.keep(site, replace(site.active, number=3), "rollback")) == 0


def test_a_store_that_cannot_be_read_has_nothing_to_go_back_to(
    ledger: Ledger, site: Lineage, broken: Callable[[bool], None]
):
    broken(True)
    for wanted in (None, 1):
        assert asyncio.run(ledger.find(site, wanted)) == (None, [])


def test_what_is_missing_on_a_full_disk_is_missing_although_something_else_fits(
    ledger: Ledger, store: Store, site: Lineage, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "botproxy")
    store.directory.mkdir(parents=True)
    with no_room(len(site.active.chain) - 1):
        keep(ledger, site)
        asyncio.run(ledger.forget_refusal(site))
    asyncio.run(ledger.audit(site, "active", site.active, site.active, Order("event", 1.0), NOW))
    assert site.active.number == 0
    assert messages(caplog) == [FAILED]
    keep(ledger, site)
    assert messages(caplog) == [RECOVERED]


def test_what_cannot_be_written_for_one_certificate_is_told_of_that_one(
    ledger: Ledger, store: Store, site: Lineage, ca: Authority, caplog: pytest.LogCaptureFixture
):
    other = lineage(ca.issue("b.test"), 0, name="other")
    store.directory.mkdir(parents=True)
    (store.directory / "other").touch()
    keep(ledger, other)
    keep(ledger, site)
    [record] = caplog.records
    assert record.__dict__["data"]["certificate"] == "other"
    assert record.__dict__["data"]["directory"] == str(store.directory)
    assert (other.active.number, site.active.number) == (0, 1)
