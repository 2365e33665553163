"""What is served from the start: the files, or the last good certificate where they are broken or worse."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from botproxy.config import schema
from botproxy.errors import ConfigError
from botproxy.keeper.boot import begin, last_good, refusal_of, restore
from botproxy.keeper.lineage import Lineage
from botproxy.keeper.states import State
from botproxy.keeper.store import Generation, Refusal, Store
from botproxy.tls.rules import Finding
from tests import certs
from tests.certs import DAY, MUST_STAPLE, NOW, Authority, Issued
from tests.keeper.conftest import Configure

ACCEPTED = NOW - 7 * DAY


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state" / "certs")


@pytest.fixture
def start(configure: Configure, store: Store, listener: ssl.SSLContext) -> Start:
    """`start(entry, ...)`: the lineages with which a keeper begins."""

    def begins(*entries: schema.Certificate, now: datetime = NOW) -> list[Lineage]:
        return begin(configure(*entries), store, listener, now)

    return begins


Start = Callable[..., list[Lineage]]


@pytest.fixture
def entry(tmp_path: Path, cert_for: Callable[..., Issued]) -> schema.Certificate:
    """Files with a good certificate for a.test; it is called "bot"."""
    return cert_for("a.test").write(tmp_path / "certs", "bot")


def put(issued: Issued, entry: schema.Certificate) -> None:
    """`issued` into the files of `entry`."""
    Path(entry.chain).write_bytes(issued.chain_pem)
    Path(entry.key).write_bytes(issued.key_pem)


def keep(
    store: Store,
    issued: Issued,
    entry: schema.Certificate,
    *,
    key: bytes | None = None,
    password: bytes | None = None,
) -> int:
    """`issued` becomes the last good generation of "bot"."""
    meta = {"accepted": ACCEPTED.isoformat(), "source": {"chain": entry.chain, "key": entry.key}}
    return store.keep("bot", issued.chain_pem, key or issued.key_pem, meta, password)


def everything(directory: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(directory.rglob("*"))}


# Good files


def test_good_files_are_served_and_nothing_is_written(
    start: Start, entry: schema.Certificate, tmp_path: Path
):
    before = everything(tmp_path)
    [lineage] = start(entry)
    assert (lineage.index, lineage.name, lineage.entry) == (0, "bot", entry)
    assert lineage.active.chain == Path(entry.chain).read_bytes()
    assert lineage.active.certificate.names == ("a.test",)
    assert (lineage.active.number, lineage.active.since) == (0, NOW)
    assert lineage.state is State.ACTIVE
    assert (lineage.refusal, lineage.unsettled, lineage.differs_since) == (None, None, None)
    assert everything(tmp_path) == before


def test_files_that_hold_the_last_good_one_are_what_was_accepted_then(
    start: Start, store: Store, tmp_path: Path, ca: Authority
):
    """Also when they have become bad since: nothing better is at hand."""
    for number, issued in enumerate((ca.issue("a.test"), certs.self_signed("a.test")), 1):
        entry = issued.write(tmp_path / "certs", "bot")
        assert keep(store, issued, entry) == number
        [lineage] = start(entry)
        assert (lineage.active.number, lineage.active.since) == (number, ACCEPTED)
        assert lineage.state is State.ACTIVE


def test_files_that_hold_the_last_good_one_in_another_spelling_hold_it(
    start: Start, store: Store, tmp_path: Path, ca: Authority
):
    issued = ca.issue("a.test")
    entry = issued.write(tmp_path / "certs", "bot")
    keep(store, issued, entry)
    assert ca.root is not None
    put(issued.with_chain(*issued.chain, ca.root), entry)
    [lineage] = start(entry)
    assert (lineage.active.number, lineage.active.since) == (1, ACCEPTED)
    assert lineage.active.chain == Path(entry.chain).read_bytes()
    assert lineage.state is State.ACTIVE


def test_a_renewal_that_came_while_nobody_looked_is_served(
    start: Start, store: Store, entry: schema.Certificate, ca: Authority
):
    keep(store, ca.issue("a.test"), entry)
    [lineage] = start(entry)
    assert lineage.active.chain == Path(entry.chain).read_bytes()
    assert (lineage.active.number, lineage.state) == (0, State.ACTIVE)


def test_what_is_odd_about_the_files_is_remembered_with_what_they_hold(
    start: Start, store: Store, tmp_path: Path, ca: Authority
):
    issued = ca.issue("a.test")
    entry = issued.write(tmp_path / "certs", "bot")
    Path(entry.key).chmod(0o644)
    for _ in range(2):
        [remark] = start(entry)[0].active.remarks
        assert remark.rule == "open_to_others"
        keep(store, issued, entry)
    cut_chain(entry)
    assert start(entry)[0].active.remarks == ()


def test_every_certificate_has_its_place(
    start: Start, entry: schema.Certificate, ca: Authority, tmp_path: Path
):
    other = ca.issue("b.test").write(tmp_path / "certs", "other")
    lineages = start(entry, other)
    assert [(each.index, each.name, each.path) for each in lineages] == [
        (0, "bot", "certificates[0]"),
        (1, "other", "certificates[1]"),
    ]


# Broken files


def lose_key(entry: schema.Certificate) -> None:
    Path(entry.key).unlink()


def cut_chain(entry: schema.Certificate) -> None:
    chain = Path(entry.chain).read_bytes()
    Path(entry.chain).write_bytes(chain[:-40])


def change_key(entry: schema.Certificate) -> None:
    Path(entry.key).write_bytes(certs.key_pem(certs.ecdsa_key()))


BROKEN = pytest.mark.parametrize("damage", [lose_key, cut_chain, change_key])


@BROKEN
def test_broken_files_leave_the_last_good_one_served_and_are_looked_at_again(
    start: Start, store: Store, entry: schema.Certificate, ca: Authority, damage: Callable[..., None]
):
    last = ca.issue("a.test")
    keep(store, last, entry)
    damage(entry)
    [lineage] = start(entry)
    assert lineage.active.certificate == last.certificate
    assert (lineage.active.number, lineage.active.since) == (1, ACCEPTED)
    assert lineage.state is State.SETTLING
    assert lineage.differs_since is not None
    assert lineage.unsettled is not None
    assert lineage.unsettled.problems[0].hint
    assert lineage.refusal is None


@BROKEN
def test_broken_files_without_a_last_good_one_stop_the_start(
    start: Start, entry: schema.Certificate, damage: Callable[..., None]
):
    damage(entry)
    with pytest.raises(ConfigError) as caught:
        start(entry)
    [problem] = caught.value.problems
    assert problem.path.startswith("certificates[0]")
    assert problem.where in (entry.chain, entry.key)
    assert problem.hint


def test_a_start_that_fails_tells_every_problem_of_every_certificate(
    start: Start, store: Store, entry: schema.Certificate, ca: Authority, wrong_key: Issued, tmp_path: Path
):
    keep(store, ca.issue("a.test"), entry)
    lose_key(entry)  # and has a last good one, which is no help to the others
    wrong = wrong_key.write(tmp_path / "certs", "wrong")
    missing = schema.Certificate(chain=f"{tmp_path}/none.pem", key=f"{tmp_path}/none.key")
    with pytest.raises(ConfigError) as caught:
        start(entry, wrong, missing)
    assert [problem.path for problem in caught.value.problems] == [
        "certificates[1]",
        "certificates[2].chain",
        "certificates[2].key",
    ]


def test_a_store_that_cannot_be_read_keeps_no_good_files_from_being_served(
    start: Start, store: Store, entry: schema.Certificate
):
    store.directory.parent.mkdir()
    store.directory.touch()
    [lineage] = start(entry)
    assert lineage.active.number == 0


# Worse files

WORSE: dict[str, Callable[[Authority], Issued]] = {
    "expired": lambda ca: ca.issue("a.test", not_before=NOW - 90 * DAY, not_after=NOW - DAY),
    "must_staple": lambda ca: ca.issue("a.test", extensions=(MUST_STAPLE,)),
    "loses_names": lambda ca: ca.issue("b.test"),
    "turns_self_signed": lambda ca: certs.self_signed("a.test"),
    "weak_key": lambda ca: ca.issue("a.test", key=certs.rsa_key(1024)),
}


@pytest.mark.parametrize("rule", WORSE)
def test_worse_files_leave_the_last_good_one_served(
    start: Start, store: Store, entry: schema.Certificate, ca: Authority, rule: str
):
    last, worse = ca.issue("a.test"), WORSE[rule](ca)
    keep(store, last, entry)
    put(worse, entry)
    [lineage] = start(entry)
    assert lineage.active.certificate == last.certificate
    assert lineage.active.number == 1
    assert lineage.state is State.REJECTED
    assert lineage.refusal is not None
    assert (lineage.refusal.rule, lineage.refusal.final) == (rule, False)
    assert lineage.differs_since is not None
    assert lineage.unsettled is None
    assert store.refusal("bot") is None


@pytest.mark.parametrize("rule", [rule for rule in WORSE if rule != "weak_key"])
def test_without_a_better_one_anything_that_can_be_served_is(
    start: Start, store: Store, entry: schema.Certificate, ca: Authority, expired_cert: Issued, rule: str
):
    put(WORSE[rule](ca), entry)
    assert start(entry)[0].state is State.ACTIVE
    keep(store, expired_cert, entry)
    [lineage] = start(entry)
    assert lineage.active.certificate.names in (("a.test",), ("b.test",))
    assert (lineage.active.number, lineage.state) == (0, State.ACTIVE)


def test_what_cannot_be_served_stops_the_start(start: Start, entry: schema.Certificate, ca: Authority):
    put(WORSE["weak_key"](ca), entry)
    with pytest.raises(ConfigError) as caught:
        start(entry)
    [problem] = caught.value.problems
    assert (problem.where, problem.path) == (entry.chain, "certificates[0]")
    assert "1024 bits" in problem.says


def test_who_allows_regressions_gets_what_the_files_hold_if_it_can_be_served(
    start: Start, store: Store, entry: schema.Certificate, ca: Authority
):
    keep(store, ca.issue("a.test"), entry)
    allowing = entry.model_copy(update={"allow_regression": True})
    put(WORSE["loses_names"](ca), entry)
    [lineage] = start(allowing)
    assert lineage.active.certificate.names == ("b.test",)
    assert lineage.state is State.ACTIVE
    put(WORSE["weak_key"](ca), entry)
    [lineage] = start(allowing)
    assert (lineage.active.number, lineage.state) == (1, State.REJECTED)


# Remembered refusals


def refuse(store: Store, digest: str, *, final: bool) -> Refusal:
    refusal = Refusal(digest, "went_back", "the operator went back", "reload", NOW.isoformat(), final)
    store.refuse("bot", refusal)
    return refusal


def test_a_final_refusal_outlives_a_restart_as_long_as_the_files_do_not_change(
    start: Start, store: Store, entry: schema.Certificate, ca: Authority
):
    [better] = start(entry)
    keep(store, ca.issue("a.test"), entry)
    refusal = refuse(store, better.active.digest, final=True)
    [lineage] = start(entry)
    assert (lineage.active.number, lineage.state, lineage.refusal) == (1, State.REJECTED, refusal)
    put(ca.issue("a.test"), entry)
    [lineage] = start(entry)
    assert (lineage.active.number, lineage.state, lineage.refusal) == (0, State.ACTIVE, None)


def test_what_was_refused_for_good_is_served_when_the_last_good_one_has_expired(
    start: Start, store: Store, entry: schema.Certificate, ca: Authority
):
    [better] = start(entry)
    keep(store, ca.issue("a.test", not_after=NOW + DAY), entry)
    refuse(store, better.active.digest, final=True)
    assert start(entry)[0].state is State.REJECTED
    [lineage] = start(entry, now=NOW + 2 * DAY)
    assert (lineage.active.certificate, lineage.state) == (better.active.certificate, State.ACTIVE)


def test_a_refusal_that_is_not_final_is_judged_anew(
    start: Start, store: Store, entry: schema.Certificate, ca: Authority
):
    [better] = start(entry)
    keep(store, ca.issue("a.test"), entry)
    refuse(store, better.active.digest, final=False)
    assert start(entry)[0].state is State.ACTIVE


def test_a_final_refusal_without_a_last_good_one_does_not_stop_the_start(
    start: Start, store: Store, entry: schema.Certificate
):
    refuse(store, start(entry)[0].active.digest, final=True)
    assert start(entry)[0].state is State.ACTIVE


def test_a_finding_is_remembered_with_the_files_it_is_about():
    finding = Finding("expired", "error", "it expired", "renew it")
    moment = NOW + timedelta(microseconds=5)
    since = NOW.isoformat()
    assert refusal_of(finding, "ab", moment) == Refusal(
        "ab", "expired", "it expired", "renew it", since, False
    )


# The last good one


@pytest.mark.parametrize("content", [b"another", None], ids=["changed", "gone"])
def test_an_encrypted_key_is_restored_with_the_password_that_was_kept_with_it(
    start: Start,
    store: Store,
    entry: schema.Certificate,
    ca: Authority,
    tmp_path: Path,
    content: bytes | None,
):
    last, password = ca.issue("a.test"), tmp_path / "password"
    keep(store, last, entry, key=certs.key_pem(last.key, b"sesame"), password=b"sesame")
    if content is not None:
        password.write_bytes(content)
    cut_chain(entry)
    [lineage] = start(entry.model_copy(update={"password_file": str(password)}))
    assert lineage.active.certificate.key == last.key_pem
    assert lineage.active.password == b"sesame"
    assert "sesame" not in repr(lineage.active)


def test_files_with_the_password_of_the_last_good_one_hold_the_last_good_one(
    start: Start, store: Store, entry: schema.Certificate, ca: Authority, tmp_path: Path
):
    last, password = ca.issue("a.test"), tmp_path / "password"
    key = certs.key_pem(last.key, b"sesame")
    keep(store, last, entry, key=key, password=b"sesame")
    Path(entry.chain).write_bytes(last.chain_pem)
    Path(entry.key).write_bytes(key)
    password.write_bytes(b"sesame\n")
    [lineage] = start(entry.model_copy(update={"password_file": str(password)}))
    assert (lineage.active.number, lineage.state) == (1, State.ACTIVE)


def test_an_encrypted_key_without_a_kept_password_is_restored_with_that_of_the_files(
    start: Start, store: Store, entry: schema.Certificate, ca: Authority, tmp_path: Path
):
    last, password = ca.issue("a.test"), tmp_path / "password"
    keep(store, last, entry, key=certs.key_pem(last.key, b"sesame"))
    opened = entry.model_copy(update={"password_file": str(password)})
    password.write_bytes(b"sesame\n")
    cut_chain(entry)
    [lineage] = start(opened)
    assert lineage.active.certificate.key == last.key_pem
    assert b"ENCRYPTED" in lineage.active.key
    Path(entry.chain).write_bytes(last.chain_pem)
    Path(entry.key).write_bytes(lineage.active.key)
    assert start(opened)[0].active.number == 1
    cut_chain(entry)
    for content in (b"another", None):
        password.unlink() if content is None else password.write_bytes(content)
        with pytest.raises(ConfigError):
            start(opened)


def test_an_older_generation_is_served_where_the_last_good_one_is_damaged(
    start: Start, store: Store, entry: schema.Certificate, ca: Authority
):
    older = ca.issue("a.test")
    keep(store, older, entry)
    newest = keep(store, ca.issue("a.test"), entry)
    (store.directory / "bot" / str(newest) / "privkey.pem").write_bytes(b"")
    lose_key(entry)
    [lineage] = start(entry)
    assert lineage.active.number == 1
    assert lineage.active.certificate == older.certificate


def test_the_current_generation_comes_before_a_newer_one(
    store: Store, entry: schema.Certificate, ca: Authority
):
    for _ in range(2):
        keep(store, ca.issue("a.test"), entry)
    store.point("bot", 1)
    active = last_good(store, "bot", entry)
    assert active is not None
    assert active.number == 1


def damaged(ca: Authority, entry: schema.Certificate) -> dict[str, Generation]:
    good = ca.issue("a.test")
    source = {"chain": entry.chain, "key": entry.key}
    meta: dict[str, Any] = {"accepted": ACCEPTED.isoformat(), "source": source}

    def generation(chain: bytes = good.chain_pem, key: bytes = good.key_pem, **changes: Any) -> Generation:
        return Generation(1, chain, key, meta | changes)

    return {
        "good": generation(),
        "of other files": generation(source=source | {"chain": "/etc/ssl/other.pem"}),
        "with another key file": generation(source=source | {"key": "/etc/ssl/other.key"}),
        "from nowhere": generation(source=None),
        "accepted at no time": generation(accepted=None),
        "accepted at a wrong time": generation(accepted="yesterday"),
        "with a chain that is cut": generation(chain=good.chain_pem[:-40]),
        "without a key": generation(key=b""),
        "with a foreign key": generation(key=certs.key_pem(certs.ecdsa_key())),
        "with a key that is encrypted": generation(key=certs.key_pem(good.key, b"sesame")),
    }


def test_a_generation_is_restored_only_if_it_is_whole_and_of_these_files(
    ca: Authority, entry: schema.Certificate
):
    restored = {what: restore(generation, entry) for what, generation in damaged(ca, entry).items()}
    assert [what for what, active in restored.items() if active is not None] == ["good"]
