"""What the admin endpoint answers, with everything behind it but the processes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from botproxy.config import schema
from botproxy.config.schema import Config
from botproxy.control.channel import Commit
from botproxy.control.link import Reconfigured
from botproxy.control.vitals import Vitals
from botproxy.keeper import lineage, rollout
from botproxy.keeper.answers import Answers
from botproxy.keeper.boot import begin
from botproxy.keeper.ledger import Ledger
from botproxy.keeper.renewal import Renewals
from botproxy.keeper.rollout import Roller
from botproxy.keeper.store import Store
from botproxy.keeper.watch import Watch
from botproxy.keeper.workers import Offer, Workers
from botproxy.tls.context import listener_context
from tests import certs
from tests.certs import DAY, NOW, Authority, Issued, key_pem
from tests.keeper.conftest import Configure
from tests.keeper.crew import PATIENCE, Crew, Played, crew


class House:
    """A keeper's parts around one loop, and workers that serve what it says."""

    def __init__(self, config: Config, everybody: Crew) -> None:
        self.crew = everybody
        listener = listener_context(config.tls)
        self.store = Store(Path(config.state_dir or "") / "certs")
        self.lineages = begin(config, self.store, listener, NOW)
        self.workers = Workers(Offer.of([lineage.active.certificate for lineage in self.lineages]))
        self.employ(70)
        roller = Roller(self.workers, everybody.endpoint(), lambda *_: None)
        self.later = timedelta()
        """How far the clock of the keeper is ahead."""
        self.renewals = Renewals(
            config,
            self.lineages,
            Ledger(self.store),
            roller,
            listener,
            lambda: datetime.now(UTC) + self.later,
        )
        watch = Watch([], config.watch, self.renewals.notice)
        self.rotations = 0
        self.problem = ""
        """Of the next rotation."""
        self.vitals = Vitals(2)
        self.reconfigured = Reconfigured(0.0, False, ())
        """What becomes of the next change of the configuration."""
        self.answers = Answers(
            self.lineages, self.renewals, self.workers, watch, self.store, self, 1, self.vitals
        )

    async def rotate(self) -> str:
        self.rotations += 1
        return self.problem

    async def reconfigure(self) -> Reconfigured:
        return self.reconfigured

    def employ(self, pid: int) -> Played:
        return self.crew.hire(pid).listen(self.crew.socket()).work().join(self.workers)

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        return await self.answers("GET", path, {})

    async def post(self, path: str, **query: str) -> tuple[int, dict[str, Any]]:
        return await self.answers("POST", path, {name: [value] for name, value in query.items()})

    async def change(self, path: str, **query: str) -> dict[str, Any]:
        """What became of the only certificate."""
        status, answer = await self.post(path, wait="1", **query)
        [change] = answer["certificates"]
        assert status == 200
        return dict(change)

    async def look(self) -> None:
        """The files are looked at because it is time to."""
        self.renewals.notice("poll")
        await self.renewals.reload(frozenset(), force=False)  # answered after what was noticed

    async def until(self, what: Callable[[], bool]) -> None:
        ends = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < ends
            await asyncio.sleep(0.01)


def tell(config: Config, story: Callable[[House], Awaitable[None]]) -> None:
    async def main() -> None:
        with crew() as everybody:
            house = House(config, everybody)
            running = asyncio.create_task(house.renewals.run())
            try:
                await house.until(lambda: all(lineage.last is not None for lineage in house.lineages))
                assert await house.workers.until(lambda: house.workers.all_serve, PATIENCE)
                await asyncio.wait_for(story(house), PATIENCE)
            finally:
                running.cancel()
                house.workers.close()

    asyncio.run(main())


@pytest.fixture
def entry(tmp_path: Path, ca: Authority) -> schema.Certificate:
    return ca.issue("a.test", "b.test").write(tmp_path, "a")


@pytest.fixture
def single(configure: Configure, entry: schema.Certificate) -> Config:
    return configure(entry)


@pytest.fixture
def double(configure: Configure, entry: schema.Certificate, ca: Authority, tmp_path: Path) -> Config:
    return configure(entry, ca.issue("c.test").write(tmp_path, "c"))


def renew(config: Config, issued: Issued, index: int = 0) -> None:
    write_chain(config, issued, index)
    write_key(config, issued, index)


def write_chain(config: Config, issued: Issued, index: int = 0) -> None:
    Path(config.certificates[index].chain).write_bytes(issued.chain_pem)


def write_key(config: Config, issued: Issued, index: int = 0) -> None:
    Path(config.certificates[index].key).write_bytes(issued.key_pem)


# Questions


def test_it_is_ready_while_every_slot_has_a_worker_that_serves_the_current_set(double: Config):
    async def story(house: House) -> None:
        status, answer = await house.get("/-/ready")
        current = house.workers.current.set
        assert status == 200
        assert answer == {
            "ready": True,
            "degraded": [],
            "workers": [{"slot": 0, "pid": 70, "set": current}],
            "certificates": [
                {
                    "name": lineage.name,
                    "names": list(lineage.active.certificate.names),
                    "not_after": lineage.active.certificate.not_after.isoformat(),
                    "fingerprint": lineage.active.certificate.fingerprint,
                }
                for lineage in house.lineages
            ],
        }
        assert [each["name"] for each in answer["certificates"]] == ["a", "c"]
        newcomer = house.crew.hire(71).join(house.workers)  # and serves nothing yet
        status, answer = await house.get("/-/ready")
        assert (status, answer["ready"]) == (200, True)
        assert answer["workers"] == [
            {"slot": 0, "pid": 70, "set": current},
            {"slot": 0, "pid": 71, "set": None},
        ]
        house.crew.members[0].leave()
        await house.until(lambda: len(house.workers.present) == 1)
        status, answer = await house.get("/-/ready")
        assert (status, answer["ready"]) == (503, False)
        await asyncio.to_thread(newcomer.enrol)
        await house.until(lambda: house.workers.all_serve)
        assert (await house.get("/-/ready"))[0] == 200
        assert await house.get("/-/live") == (200, {"live": True})

    tell(double, story)


def test_files_that_are_refused_degrade_it_and_it_stays_ready(single: Config, expired_cert: Issued):
    async def story(house: House) -> None:
        renew(single, expired_cert)
        change = await house.change("/-/reload")
        assert (change["outcome"], change["generation"]) == ("rejected", 1)
        status, answer = await house.get("/-/ready")
        [trouble] = answer["degraded"]
        assert (status, answer["ready"]) == (200, True)
        assert trouble.startswith(f"a: the files are refused ({change['rule']}): ")

    tell(single, story)


def test_everything_about_every_certificate_but_its_secret(double: Config):
    secrets = Path(double.certificates[0].key).read_text().splitlines()[1:-1]

    async def story(house: House) -> None:
        house.crew.hire(71, 1).join(house.workers)
        status, answer = await house.get("/-/certificates")
        first, second = answer["certificates"]
        assert status == 200
        assert answer["watch"] == "poll"
        assert [each["pid"] for each in answer["workers"]] == [70, 71]
        assert (first["name"], first["chain"], first["key"]) == (
            "a",
            double.certificates[0].chain,
            double.certificates[0].key,
        )
        assert (second["served_by"], second["workers"], second["kept"]) == (1, 2, [1])
        assert (first["state"], first["matches_files"], first["refused"]) == ("active", True, None)
        assert not [line for line in secrets if line in json.dumps(answer)]

    tell(double, story)


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("POST", "/-/live", 405, "GET, HEAD"),
        ("DELETE", "/-/ready", 405, "GET, HEAD"),
        ("PUT", "/-/certificates", 405, "GET, HEAD"),
        ("GET", "/-/reload", 405, "POST"),
        ("GET", "/-/rollback", 405, "POST"),
        ("PUT", "/-/rotate", 405, "POST"),
        ("GET", "/", 404, None),
        ("GET", "/-/ready/", 404, None),
        ("POST", "/-/Reload", 404, None),
    ],
)
def test_anything_else_is_refused(single: Config, method: str, path: str, status: int, allow: str | None):
    async def story(house: House) -> None:
        answered, body = await house.answers(method, path, {})
        assert (answered, body.get("allow")) == (status, allow)
        assert body["error"]
        assert house.rotations == 0

    tell(single, story)


# Reload


def test_a_reload_says_what_became_of_each_certificate(double: Config, ca: Authority):
    async def story(house: House) -> None:
        status, answer = await house.post("/-/reload", wait="1")
        assert [(each["name"], each["outcome"]) for each in answer["certificates"]] == [
            ("a", "unchanged"),
            ("c", "unchanged"),
        ]
        renewed = ca.issue("c.test")
        renew(double, renewed, 1)
        status, answer = await house.post("/-/reload", wait="1")
        assert status == 200
        assert [(each["outcome"], each["generation"]) for each in answer["certificates"]] == [
            ("unchanged", 1),
            ("active", 2),
        ]
        assert renewed.fingerprint in house.crew.members[0].fingerprints

    tell(double, story)


def test_only_the_named_certificates_are_looked_at(double: Config, ca: Authority):
    async def story(house: House) -> None:
        renew(double, ca.issue("a.test", "b.test"), 0)
        renew(double, ca.issue("c.test"), 1)
        change = await house.change("/-/reload", name="c")
        assert (change["name"], change["outcome"]) == ("c", "active")
        assert house.lineages[0].active.number == 1

    tell(double, story)


def test_an_unknown_name_is_told_with_those_that_are_known(double: Config):
    async def story(house: House) -> None:
        for path in ("/-/reload", "/-/rollback"):
            status, answer = await house.post(path, name="\x1b[31m" + "x" * 100)
            assert status == 404
            assert answer["hint"] == "there are: a, c"
            assert answer["error"].isprintable()
            assert len(answer["error"]) < 120

    tell(double, story)


def test_without_wait_it_is_answered_as_soon_as_it_is_taken(single: Config, ca: Authority):
    async def story(house: House) -> None:
        renew(single, ca.issue("a.test", "b.test"))
        assert await house.post("/-/reload") == (202, {"taken": True})
        await house.until(lambda: house.lineages[0].active.number == 2)

    tell(single, story)


def test_it_is_done_although_whoever_asked_has_left(single: Config, ca: Authority):
    async def story(house: House) -> None:
        renew(single, ca.issue("a.test", "b.test"))
        asking = asyncio.create_task(house.post("/-/reload", wait="1", compromised="1"))
        await house.until(lambda: house.lineages[0].differs_since is not None)
        asking.cancel()
        await house.until(lambda: house.rotations == 1)
        assert house.store.numbers("a") == [2]

    tell(single, story)


def test_somebody_who_asks_waits_for_files_that_are_not_whole_yet(single: Config, ca: Authority):
    async def story(house: House) -> None:
        renewed = ca.issue("a.test", "b.test")
        write_chain(single, renewed)
        asking = asyncio.create_task(house.change("/-/reload"))
        await house.until(lambda: house.lineages[0].unsettled is not None)
        write_key(single, renewed)
        assert (await asking)["outcome"] == "active"

    tell(single, story)


@pytest.mark.parametrize(("force", "outcome"), [("0", "rejected"), ("1", "active")])
def test_force_overrides_the_guard(single: Config, ca: Authority, force: str, outcome: str):
    async def story(house: House) -> None:
        renew(single, ca.issue("a.test"))
        change = await house.change("/-/reload", force=force)
        assert change["outcome"] == outcome
        assert (change["rule"] == "loses_names") is (force == "0")

    tell(single, story)


# A key in wrong hands


@pytest.mark.parametrize("problem", ["", "no room for another process"])
def test_of_a_compromised_key_nothing_stays(single: Config, ca: Authority, problem: str):
    async def story(house: House) -> None:
        house.problem = problem
        renew(single, ca.issue("a.test", "b.test"))
        status, answer = await house.post("/-/reload", wait="1", compromised="1")
        assert (status, answer["removal"], answer["rotation"]) == (200, "", problem)
        assert answer["old_keys"] == []
        assert house.rotations == 1
        assert house.store.numbers("a") == [2]

    tell(single, story)


def test_a_compromised_key_that_nothing_has_replaced_is_in_the_answer(
    single: Config, ca: Authority, entry: schema.Certificate
):
    async def story(house: House) -> None:
        _, answer = await house.post("/-/reload", wait="1", compromised="1")
        assert (answer["certificates"][0]["outcome"], answer["old_keys"]) == ("unchanged", ["a"])
        renew(single, ca.issue("a.test", "b.test"))
        await house.change("/-/reload")
        _, answer = await house.post("/-/reload", wait="1", compromised="1")
        assert (answer["certificates"][0]["outcome"], answer["old_keys"]) == ("unchanged", [])

    tell(single, story)


def test_a_compromised_key_that_stays_on_disk_is_in_the_answer_until_it_is_gone(
    single: Config, ca: Authority
):
    async def story(house: House) -> None:
        place = house.store.directory / "a" / "1"
        elsewhere = place.rename(house.store.directory / "elsewhere")
        place.symlink_to(elsewhere)  # nothing behind a link is removed
        renew(single, ca.issue("a.test", "b.test"))
        _, answer = await house.post("/-/reload", wait="1", compromised="1")
        assert answer["certificates"][0]["outcome"] == "active"
        assert answer["removal"].startswith("a: ")
        assert "symbolic link" in answer["removal"]
        assert (answer["rotation"], house.rotations) == ("", 1)
        [trouble] = (await house.get("/-/ready"))[1]["degraded"]
        assert trouble.startswith("a: older keys could not be removed")
        place.unlink()
        elsewhere.rename(place)
        await house.look()  # what could not be done is tried again with every look
        await house.until(lambda: house.store.numbers("a") == [2])
        await house.until(lambda: not house.lineages[0].unwritten)
        assert (await house.get("/-/ready"))[1]["degraded"] == []

    tell(single, story)


def test_a_compromised_key_stays_while_there_is_no_other(single: Config, expired_cert: Issued):
    async def story(house: House) -> None:
        renew(single, expired_cert)
        status, answer = await house.post("/-/reload", wait="1", compromised="1")
        assert (status, answer["certificates"][0]["outcome"]) == (200, "rejected")
        assert ("rotation" in answer, house.rotations) == (False, 0)
        assert house.store.numbers("a") == [1]

    tell(single, story)


@pytest.mark.parametrize("problem", ["", "worker 0 ended with 70"])
def test_new_ticket_keys_or_the_reason_why_not(single: Config, problem: str):
    async def story(house: House) -> None:
        house.problem = problem
        answer = await house.post("/-/rotate")
        assert answer == (200, {"rotated": not problem, "says": problem})
        assert house.rotations == 1

    tell(single, story)


# Going back


def test_the_operator_goes_back_and_the_files_are_left_alone_until_they_change(single: Config, ca: Authority):
    async def story(house: House) -> None:
        for _ in range(2):
            renew(single, ca.issue("a.test", "b.test"))
            assert (await house.change("/-/reload"))["outcome"] == "active"
        first = house.store.read("a", 1)
        assert first is not None
        change = await house.change("/-/rollback")
        assert (change["name"], change["outcome"], change["generation"]) == ("a", "active", 2)
        change = await house.change("/-/rollback", name="a", to="1")
        assert (change["outcome"], change["generation"]) == ("active", 1)
        assert house.crew.members[0].fingerprints == (first.meta["fingerprint"],)
        await house.look()
        [status] = (await house.get("/-/certificates"))[1]["certificates"]
        assert (status["generation"], status["refused"]["rule"]) == (1, "went_back")
        assert (await house.change("/-/reload"))["outcome"] == "active"
        assert house.lineages[0].active.number == 4

    tell(single, story)


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ({}, 400, "which certificate?"),
        ({"name": "a", "to": "-1"}, 400, "number of a generation"),
        ({"name": "a", "to": "9999999999"}, 400, "number of a generation"),
        ({"name": "a", "to": ""}, 400, "number of a generation"),
    ],
)
def test_a_rollback_that_cannot_be_meant_is_refused(
    double: Config, query: dict[str, str], status: int, says: str
):
    async def story(house: House) -> None:
        answered, answer = await house.post("/-/rollback", **query)
        assert answered == status
        assert says in answer["error"]
        assert answer["hint"]

    tell(double, story)


def test_a_generation_that_is_not_there_is_a_failure_that_names_those_that_are(single: Config):
    async def story(house: House) -> None:
        for query in ({}, {"to": "7"}):
            change = await house.change("/-/rollback", **query)
            assert (change["outcome"], change["rule"], change["generation"]) == ("failed", "no_generation", 1)
            assert "there are: 1" in change["says"]

    tell(single, story)


def test_to_one_that_has_expired_the_operator_goes_back_by_force_alone(
    configure: Configure, ca: Authority, tmp_path: Path
):
    expired = ca.issue("a.test", not_before=NOW - 30 * DAY, not_after=NOW - DAY)
    config = configure(expired.write(tmp_path, "a"))

    async def story(house: House) -> None:
        renew(config, ca.issue("a.test"))
        assert (await house.change("/-/reload"))["outcome"] == "active"
        for query in ({}, {"to": "1"}):
            change = await house.change("/-/rollback", **query)
            assert (change["outcome"], change["rule"], change["generation"]) == ("rejected", "expired", 2)
            assert "generation 1" in change["says"]
            assert "--force" in change["hint"]
        assert house.store.current("a") == 2
        change = await house.change("/-/rollback", force="1")
        assert (change["outcome"], change["generation"]) == ("active", 1)
        await house.look()  # whoever forced it knew that it had expired
        assert house.crew.members[0].fingerprints == (expired.fingerprint,)

    tell(config, story)


def test_what_was_gone_back_from_is_taken_when_the_older_one_has_expired(
    configure: Configure, ca: Authority, tmp_path: Path
):
    config = configure(ca.issue("a.test", not_after=NOW + DAY).write(tmp_path, "a"))

    async def story(house: House) -> None:
        newer = ca.issue("a.test")
        renew(config, newer)
        assert (await house.change("/-/reload"))["outcome"] == "active"
        assert (await house.change("/-/rollback"))["generation"] == 1
        await house.look()
        assert house.lineages[0].active.number == 1
        house.later = 2 * DAY
        await house.look()
        assert house.crew.members[0].fingerprints == (newer.fingerprint,)
        assert house.lineages[0].refusal is None

    tell(config, story)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has much patience with workers, and what was rolled back rests only for a moment."""
    monkeypatch.setattr(rollout, "COMMIT_PATIENCE", 0.1)
    monkeypatch.setattr(rollout, "REPLACED_PATIENCE", 0.1)
    monkeypatch.setattr(lineage, "REST", 0.3)


@pytest.mark.usefixtures("hasty")
def test_what_no_worker_took_over_in_time_is_tried_again_later(single: Config, ca: Authority):
    async def story(house: House) -> None:
        slow = house.crew.hire(71).listen(house.crew.socket()).join(house.workers)
        await asyncio.to_thread(slow.enrol)
        house.crew.members[0].leave()
        await house.until(lambda: len(house.workers.present) == 1)
        newer = ca.issue("a.test", "b.test")
        renew(single, newer)
        asking = asyncio.create_task(house.change("/-/reload"))
        new = await asyncio.to_thread(slow.prepare)
        assert await asyncio.to_thread(slow.hear) == Commit(new)  # and does nothing about it
        assert (await asking)["outcome"] == "rolled_back"
        [status] = (await house.get("/-/certificates"))[1]["certificates"]
        assert status["refused"]["rule"] == "rolled_back"
        slow.work()
        await house.until(lambda: house.lineages[0].active.certificate.fingerprint == newer.fingerprint)
        assert slow.fingerprints == (newer.fingerprint,)

    tell(single, story)


def test_a_generation_that_is_there_and_cannot_be_used_is_said_to_be_that(single: Config, ca: Authority):
    async def story(house: House) -> None:
        renew(single, ca.issue("a.test", "b.test"))
        assert (await house.change("/-/reload"))["outcome"] == "active"
        (house.store.directory / "a" / "1" / "privkey.pem").write_bytes(b"")
        for query in ({}, {"to": "1"}):
            change = await house.change("/-/rollback", **query)
            assert (change["outcome"], change["rule"], change["generation"]) == ("failed", "no_generation", 2)
            assert change["says"].startswith("generation 1 cannot be used ")

    tell(single, story)


@pytest.mark.usefixtures("hasty")
def test_the_operator_does_not_go_back_to_what_was_rolled_back(single: Config, ca: Authority):
    async def story(house: House) -> None:
        first = house.crew.members[0].fingerprints
        slow = house.crew.hire(71, 1).join(house.workers)
        await asyncio.to_thread(slow.enrol)
        house.crew.members[0].leave()
        await house.until(lambda: len(house.workers.present) == 1)
        renew(single, ca.issue("a.test", "b.test"))
        asking = asyncio.create_task(house.change("/-/reload"))
        await asyncio.to_thread(slow.prepare)
        assert (await asking)["outcome"] == "rolled_back"
        slow.leave()
        house.employ(72)
        renew(single, ca.issue("a.test", "b.test"))
        change = await house.change("/-/reload")
        assert (change["outcome"], change["generation"]) == ("active", 3)
        change = await house.change("/-/rollback")
        assert (change["outcome"], change["generation"]) == ("active", 1)
        assert house.crew.members[-1].fingerprints == first

    tell(single, story)


def test_a_file_in_another_spelling_is_no_new_generation(single: Config, ca: Authority):
    def append_root() -> None:
        assert ca.root is not None
        with open(single.certificates[0].chain, "ab") as chain:
            chain.write(certs.pem(ca.root))

    async def story(house: House) -> None:
        append_root()
        assert (await house.change("/-/reload"))["outcome"] == "unchanged"
        assert house.store.numbers("a") == [1]
        assert house.lineages[0].differs_since is None
        renew(single, ca.issue("a.test", "b.test"))
        assert (await house.change("/-/reload"))["generation"] == 2

    tell(single, story)


@pytest.mark.usefixtures("hasty")
def test_what_the_listener_showed_wrongly_is_tried_again_when_the_current_one_has_expired(
    configure: Configure, ca: Authority, tmp_path: Path
):
    old = ca.issue("a.test", not_after=NOW + DAY)
    config = configure(old.write(tmp_path, "a"))
    stuck = certs.load(old)

    async def story(house: House) -> None:
        wrong = house.crew.hire(71).listen(house.crew.socket(), shows=stuck.default).work()
        wrong.join(house.workers)
        await asyncio.to_thread(wrong.wait_for, lambda: bool(wrong.sets))
        house.crew.members[0].leave()
        await house.until(lambda: len(house.workers.present) == 1)
        newer = ca.issue("a.test")
        renew(config, newer)
        assert (await house.change("/-/reload"))["outcome"] == "rolled_back"
        await house.until(lambda: house.lineages[0].again_at is None)  # its rest is over
        tried = len(wrong.sets)
        await house.look()
        assert len(wrong.sets) == tried
        house.employ(72)
        wrong.leave()
        house.later = 2 * DAY
        house.renewals.notice("poll")
        await house.until(lambda: house.lineages[0].active.certificate.fingerprint == newer.fingerprint)

    tell(config, story)


def test_the_operator_goes_back_to_a_key_with_another_password(
    single: Config, entry: schema.Certificate, configure: Configure, ca: Authority, tmp_path: Path
):
    opened = entry.model_copy(update={"password_file": str(tmp_path / "password")})
    first, second = ca.issue("a.test", "b.test"), ca.issue("a.test", "b.test")

    def put(issued: Issued, password: bytes) -> None:
        Path(opened.password_file or "").write_bytes(password)
        Path(opened.key).write_bytes(key_pem(issued.key, password))
        write_chain(single, issued)

    async def story(house: House) -> None:
        put(second, b"another")
        assert (await house.change("/-/reload"))["outcome"] == "active"
        change = await house.change("/-/rollback")
        assert (change["outcome"], change["generation"]) == ("active", 1)
        assert house.crew.members[0].fingerprints == (first.fingerprint,)

    put(first, b"sesame")
    tell(configure(opened), story)


def test_the_served_generation_is_no_change(single: Config):
    async def story(house: House) -> None:
        assert (await house.change("/-/rollback", to="1"))["outcome"] == "unchanged"

    tell(single, story)
