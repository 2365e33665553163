"""Whatever is put in the place of good files: the good certificate is served on, and one message says why."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    pkcs12,
)

from tests import certs
from tests.certs import Authority, Issued
from tests.e2e.conftest import Start
from tests.e2e.layouts import InPlace, RenameOver, put
from tests.e2e.served import served, wait_served
from tests.harness import Bot, Proxied

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def bot() -> Iterator[Bot]:
    with Bot() as one:
        yield one


Break = Callable[[InPlace, Issued], None]


def chain(make: Callable[[Issued], bytes]) -> Break:
    return lambda site, new: put(site.chain, make(new))


def key(make: Callable[[Issued], bytes]) -> Break:
    return lambda site, new: put(site.key, make(new))


def pkcs12_of(new: Issued) -> bytes:
    encryption = BestAvailableEncryption(b"sesame")
    return pkcs12.serialize_key_and_certificates(b"site", new.key, new.leaf, None, encryption)


def encrypt(site: InPlace, new: Issued) -> None:
    put(site.chain, new.chain_pem)
    put(site.key, certs.key_pem(new.key, b"sesame"))


def make_directory(site: InPlace, new: Issued) -> None:
    site.chain.unlink()
    site.chain.mkdir()


def make_circle(site: InPlace, new: Issued) -> None:
    site.chain.unlink()
    site.chain.symlink_to(site.chain)


UNUSABLE: dict[str, tuple[Break, str]] = {
    "key of another pair": (chain(lambda new: new.chain_pem), "belongs to another certificate"),
    "chain cut": (chain(lambda new: new.chain_pem[:500]), "breaks off inside a PEM block"),
    "key cut": (key(lambda new: new.key_pem[:100]), "breaks off inside a PEM block"),
    "key as chain": (chain(lambda new: new.key_pem), "holds a private key and no certificate"),
    "chain as key": (key(lambda new: new.chain_pem), "holds certificates and no private key"),
    "PKCS#12": (chain(pkcs12_of), "is PKCS#12"),
    "DER": (chain(lambda new: new.leaf.public_bytes(Encoding.DER)), "is DER"),
    "encrypted without password": (encrypt, "no password is configured"),
    "empty": (chain(lambda new: b""), "is empty"),
    "missing": (lambda site, new: site.key.unlink(), "does not exist"),
    "a directory": (make_directory, "found a directory"),
    "ten megabytes": (chain(lambda new: b"x" * 10_000_000), "larger than 1 MiB"),
    "links in a circle": (make_circle, "lead in a circle"),
}
"""What is no pair of files at all, and may become one yet: said after half a minute, or when asked."""


class Broken:
    """A botproxy whose sites were all good at the start, and are then broken, each in its own way."""

    def __init__(self, start: Start, bot: Bot, ca: Authority, directory: Path) -> None:
        self.ca = ca
        self.issued = {name: ca.issue(host(name)) for name in UNUSABLE}
        self.sites = {name: InPlace(directory / host(name), one) for name, one in self.issued.items()}
        self.front = start(
            bot.url, certificates=[site.entry for site in self.sites.values()], workers=2, admin=None
        )
        self.began = len(self.front.log.lines)
        for name, (change, _) in UNUSABLE.items():
            change(self.sites[name], ca.issue(host(name)))


def host(name: str) -> str:
    return name.replace(" ", "-").replace("#", "").lower() + ".test"


@pytest.fixture(scope="module")
def broken(start_once: Start, bot: Bot, ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Broken:
    return Broken(start_once, bot, ca, tmp_path_factory.mktemp("broken"))


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_no_pair_is_named_when_asked_and_the_good_one_is_served(
    broken: Broken, trust: ssl.SSLContext, name: str
) -> None:
    change = broken.front.reload(f"name={host(name)}")[host(name)]
    assert (change["outcome"], change["generation"]) == ("rejected", 1)
    assert UNUSABLE[name][1] in change["says"]
    assert change["hint"]
    for _ in range(4):
        assert served(broken.front, host(name), trust) == broken.issued[name].leaf


def is_about(name: str, line: str) -> bool:
    return f"certificate={name} " in line and "cannot be used" in line


def test_each_is_said_once_in_the_log_and_health_is_degraded(broken: Broken, trust: ssl.SSLContext) -> None:
    for name, (_, says) in UNUSABLE.items():
        line = broken.front.log.wait_for(partial(is_about, host(name)))
        assert says in line.replace('\\"', '"'), line
        assert " hint=" in line
    mark = len(broken.front.log.lines)
    broken.front.reload()  # looks at everything again, and at what time has brought
    said = broken.front.log.lines[broken.began :]
    for name in UNUSABLE:
        about = [line for line in said if f"certificate={host(name)} " in line]
        assert len(about) == 1, about
    assert broken.front.log.lines[mark:] == []
    ready = broken.front.ask("/-/ready")
    assert ready["ready"]
    for name in UNUSABLE:
        assert any(trouble.startswith(f"{host(name)}: ") for trouble in ready["degraded"])


def test_files_that_become_whole_are_taken_over(broken: Broken, trust: ssl.SSLContext) -> None:
    for name in ("chain cut", "missing", "key of another pair"):
        issued = broken.ca.issue(host(name))
        broken.sites[name].renew(issued)
        wait_served(broken.front, issued)
        assert served(broken.front, host(name), trust) == issued.leaf
        assert not any(host(name) in trouble for trouble in broken.front.ask("/-/ready")["degraded"])


# Whole, and worse


NAMES = ("localhost", "www.test")
MUST_STAPLE = x509.TLSFeature([x509.TLSFeatureType.status_request])
WORSE: dict[str, tuple[str, Callable[[Authority, Issued], Issued]]] = {
    "expired": (
        "expired",
        lambda ca, _: ca.issue(*NAMES, not_before=certs.NOW - 9 * DAY, not_after=certs.NOW - DAY),
    ),
    "not yet valid": (
        "not_yet_valid",
        lambda ca, _: ca.issue(*NAMES, not_before=certs.NOW + 9 * DAY, not_after=certs.NOW + 99 * DAY),
    ),
    "another host": ("loses_names", lambda ca, _: ca.issue("other.test")),
    "a name less": ("loses_names", lambda ca, _: ca.issue("localhost")),
    "without its intermediate": (
        "missing_intermediate",
        lambda ca, _: (new := ca.issue(*NAMES)).with_chain(new.leaf),
    ),
    "self-signed": ("turns_self_signed", lambda ca, _: certs.self_signed(*NAMES)),
    "from a private CA": ("turns_private", lambda ca, _: certs.root("Other").intermediate().issue(*NAMES)),
    "must-staple": ("must_staple", lambda ca, _: ca.issue(*NAMES, extensions=(MUST_STAPLE,))),
    "an old copy": (
        "ends_earlier",
        lambda ca, good: ca.issue(*NAMES, key=good.key, not_after=certs.NOW + 60 * DAY),
    ),
    "weak": ("weak_key", lambda ca, _: ca.issue(*NAMES, key=certs.rsa_key(1024))),
}


@pytest.fixture
def public(ca: Authority, tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose system trusts the tests' root."""
    file = tmp_path / "roots.pem"
    assert ca.root is not None
    file.write_bytes(certs.pem(ca.root))
    return {"SSL_CERT_FILE": str(file)}


@pytest.mark.parametrize("name", WORSE)
def test_what_is_worse_is_refused_by_its_rule_until_it_is_forced(
    start: Start, bot: Bot, ca: Authority, tmp_path: Path, public: dict[str, str], name: str
) -> None:
    rule, make = WORSE[name]
    good = ca.issue(*NAMES)
    site = RenameOver(tmp_path / "site", good)
    front = start(bot.url, certificates=[site.entry], workers=2, admin=None, env=public)
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    worse = make(ca, good)
    site.renew(worse)
    line = front.log.wait_for(lambda line: "the new certificate is refused" in line)
    assert f"rule={rule} " in line
    assert " hint=" in line
    change = front.reload()["site"]
    assert (change["outcome"], change["rule"]) == ("rejected", rule)
    assert served(front, "localhost", anyone) == good.leaf
    assert len([line for line in front.log.lines if "level=error" in line]) == 1, "said once"
    forced = front.reload("force=1")["site"]
    if rule == "weak_key":
        assert (forced["outcome"], forced["rule"]) == ("rejected", rule), "nobody could be served with it"
    else:
        assert (forced["outcome"], forced["generation"]) == ("active", 2)
        assert served(front, "localhost", anyone) == worse.leaf


@pytest.mark.parametrize("renewed", [False, True], ids=["the same certificate", "a renewed one"])
def test_a_chain_that_lost_its_upper_intermediate_is_refused(
    start: Start, bot: Bot, tmp_path: Path, renewed: bool
) -> None:
    """Of a private CA, whose root this system does not know; its clients do."""
    own = certs.root("Own").intermediate("Upper").intermediate("Lower")
    good = own.issue("localhost")
    site = RenameOver(tmp_path / "site", good)
    front = start(bot.url, certificates=[site.entry], admin=None)
    worse = own.issue("localhost") if renewed else good
    site.renew(worse.with_chain(*worse.chain[:-1]))
    line = front.log.wait_for(lambda line: "the new certificate is refused" in line)
    assert "rule=missing_intermediate " in line
    assert served(front, "localhost", own.trust()) == good.leaf
    mended = own.issue("localhost")
    site.renew(mended)
    wait_served(front, mended)
    assert served(front, "localhost", own.trust()) == mended.leaf


def test_allow_regression_takes_over_what_is_worse(
    start: Start, bot: Bot, ca: Authority, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    site = InPlace(tmp_path / "site", ca.issue("localhost", "www.test"))
    front = start(bot.url, certificates=[site.entry | {"allow_regression": True}])
    worse = ca.issue("localhost")
    site.renew(worse)
    wait_served(front, worse)
    assert served(front, "localhost", trust) == worse.leaf


def test_a_refused_renewal_is_taken_when_the_current_one_has_expired(
    start: Start, bot: Bot, ca: Authority, tmp_path: Path
) -> None:
    """Time makes the worse one the better one, and nobody has to say so."""
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=12)
    site = InPlace(tmp_path / "site", ca.issue("localhost", "www.test", not_after=soon))
    front = start(bot.url, certificates=[site.entry], watch={"poll": "500ms"})
    fewer = ca.issue("localhost")
    site.renew(fewer)
    front.log.wait_for(lambda line: "rule=loses_names" in line)
    wait_served(front, fewer)
    assert datetime.now(UTC) >= soon


def test_an_encrypted_key_is_renewed_with_its_password_file(
    start: Start, bot: Bot, ca: Authority, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    first = ca.issue("localhost")
    site = InPlace(tmp_path / "site", first)
    put(site.key, certs.key_pem(first.key, b"sesame"))
    put(tmp_path / "password", b"sesame\n")
    front = start(
        bot.url, certificates=[site.entry | {"password_file": str(tmp_path / "password")}], workers=2
    )
    second = ca.issue("localhost")
    put(site.chain, second.chain_pem)
    put(site.key, certs.key_pem(second.key, b"sesame"))
    wait_served(front, second)
    assert served(front, "localhost", trust) == second.leaf
    kept = Path(front.config["state_dir"]) / "certs/site/current/privkey.pem"
    assert b"ENCRYPTED" in kept.read_bytes(), "what was encrypted stays encrypted"


# At the start


@pytest.mark.parametrize("how", ["broken", "worse", "missing"])
def test_a_start_with_bad_files_serves_the_last_good_certificate_loudly(
    start: Start, bot: Bot, ca: Authority, trust: ssl.SSLContext, tmp_path: Path, how: str
) -> None:
    site = InPlace(tmp_path / "site", ca.issue("localhost"))
    front = start(bot.url, certificates=[site.entry], admin=None)
    good = ca.issue("localhost")
    site.renew(good)
    wait_served(front, good)
    assert front.stop() == 0
    if how == "broken":
        put(site.chain, good.chain_pem[:300])
    elif how == "worse":
        site.renew(ca.issue("other.test"))
    else:
        os.unlink(site.key)
    again = start(bot.url, **{key: front.config[key] for key in ("certificates", "state_dir")}, admin=None)
    assert served(again, "localhost", trust) == good.leaf
    line = again.log.wait_for(lambda line: "the last good certificate is" in line)
    assert "level=error" in line
    assert " hint=" in line
    ready = again.ask("/-/ready")
    assert ready["ready"]
    assert len(ready["degraded"]) == 1
    mended = ca.issue("localhost")
    put(site.key, mended.key_pem)
    put(site.chain, mended.chain_pem)
    wait_served(again, mended)
    assert again.ask("/-/ready")["degraded"] == []


@pytest.mark.parametrize("how", ["other encryption", "password gone", "broken renewal"])
def test_a_start_with_another_password_serves_the_last_good_certificate(
    start: Start, bot: Bot, ca: Authority, trust: ssl.SSLContext, tmp_path: Path, how: str
) -> None:
    good, password = ca.issue("localhost"), tmp_path / "password"
    site = InPlace(tmp_path / "site", good)
    put(site.key, certs.key_pem(good.key, b"sesame"))
    put(password, b"sesame\n")
    entry = site.entry | {"password_file": str(password)}
    front = start(bot.url, certificates=[entry], admin=None)
    if how == "other encryption":
        put(site.key, certs.key_pem(good.key, b"another"))
        put(password, b"another\n")
        assert front.reload()["site"]["outcome"] == "unchanged"
    elif how == "broken renewal":
        new = ca.issue("localhost")
        put(password, b"another\n")
        put(site.key, certs.key_pem(new.key, b"third"))
        put(site.chain, new.chain_pem)
        assert front.reload()["site"]["outcome"] == "rejected"
    assert front.stop() == 0
    if how == "other encryption":
        put(site.chain, b"")
    elif how == "password gone":
        password.unlink()
    again = start(bot.url, **{key: front.config[key] for key in ("certificates", "state_dir")}, admin=None)
    assert served(again, "localhost", trust) == good.leaf
    assert not any(word in line for line in again.log.lines for word in ("sesame", "another\\n"))


def test_the_last_good_certificate_of_other_files_is_not_served(
    start: Start, bot: Bot, ca: Authority, tmp_path: Path
) -> None:
    site = InPlace(tmp_path / "site", ca.issue("localhost"))
    front = start(bot.url, certificates=[site.entry])
    assert front.stop() == 0
    other = InPlace(tmp_path / "other", ca.issue("localhost"))
    put(other.chain, b"")
    entry = other.entry | {"name": "site"}
    ended = Proxied(front.config | {"certificates": [entry]}, tmp_path)
    assert ended.wait() == 2
    assert any("is empty" in line for line in ended.log.join())
    ended.access.join()
