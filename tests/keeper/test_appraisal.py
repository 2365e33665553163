"""What speaks against a certificate: a rule, the guard, the proof, or what a strict client would think."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from botproxy.config import schema
from botproxy.errors import ConfigError
from botproxy.keeper.appraisal import distrusted_chain, objection, system_roots
from botproxy.keeper.load import parse_pair
from botproxy.keeper.source import Pair
from tests import certs
from tests.certs import DAY, NOW, Authority, Issued
from tests.keeper.conftest import odd_chain

Rule = Callable[..., str | None]


@pytest.fixture
def rule(public: Authority, listener: ssl.SSLContext) -> Rule:
    """`rule(new, current)`: the rule that refuses it."""

    def ask(new: Issued, current: Issued | None = None, **options: bool) -> str | None:
        finding = objection(
            new.certificate, current.certificate if current else None, NOW, listener, **options
        )
        assert finding is None or (finding.sentence.isprintable() and finding.fix)
        return finding.rule if finding else None

    return ask


def whole(authority: Authority, issued: Issued) -> Issued:
    """With the root in the file."""
    assert authority.root is not None
    return issued.with_chain(*issued.chain, authority.root)


# Objections


def test_a_good_certificate_is_welcome(rule: Rule, public: Authority):
    for key in (certs.ecdsa_key(), certs.rsa_key()):
        new = public.issue("a.test", "*.b.test", "192.0.2.7", key=key)
        assert rule(new) is None
        assert rule(new, public.issue("a.test")) is None


def test_the_rules_come_first(rule: Rule, public: Authority, wrong_key: Issued):
    for options in ({}, {"forced": True}):
        assert rule(wrong_key, None, **options) == "key_mismatch"
        assert rule(wrong_key, public.issue("a.test"), **options) == "key_mismatch"


def test_the_guard_knows_whom_the_system_trusts(
    rule: Rule, public: Authority, monkeypatch: pytest.MonkeyPatch
):
    private, current = certs.root().intermediate().issue("a.test"), public.issue("a.test")
    assert rule(private, current) == "turns_private"
    assert rule(private, current, forced=True) is None
    assert rule(private) is None
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    assert rule(private, current) is None


def test_what_openssl_cannot_serve_is_refused_even_by_force(rule: Rule, public: Authority):
    odd = public.issue("a.test", key=ec.generate_private_key(ec.SECP256K1()))
    assert rule(odd) == "unservable"
    assert rule(odd, public.issue("a.test"), forced=True) == "unservable"


def test_a_chain_that_openssl_does_not_verify_is_refused_where_there_is_something_to_lose(
    rule: Rule, public: Authority
):
    expired = certs.root().issue("a.test", not_before=NOW - 90 * DAY, not_after=NOW - DAY)
    own = certs.root("Own").intermediate()
    for authority, odd in ((public, odd_chain(public)), (own, whole(own, odd_chain(own)))):
        current = whole(authority, authority.issue("a.test"))
        assert rule(odd, current) == "chain_not_verified"
        assert rule(odd, current, forced=True) is None
        assert rule(odd) is None
        assert rule(odd, expired) is None
        assert rule(odd, odd) is None
        assert rule(current, odd) is None


def test_no_descriptor_is_lost_on_any_road(rule: Rule, public: Authority, wrong_key: Issued):
    current = public.issue("a.test")
    before = sorted(os.listdir("/proc/self/fd"))
    for new in (current, wrong_key, odd_chain(public), certs.self_signed("a.test")):
        rule(new, current)
    assert sorted(os.listdir("/proc/self/fd")) == before


# Chains


def test_a_strict_client_is_asked_about_chains_that_lead_to_a_root(ca: Authority):
    assert ca.root is not None
    finding = distrusted_chain(whole(ca, odd_chain(ca)).certificate, [])
    assert finding is not None
    assert (finding.rule, finding.severity) == ("chain_not_verified", "error")
    assert "invalid CA certificate" in finding.sentence
    for fine in (ca.issue("a.test"), ca.issue("192.0.2.7", "*.a.test")):
        assert distrusted_chain(whole(ca, fine).certificate, None) is None


def test_nothing_is_said_about_a_chain_whose_root_is_not_known(ca: Authority):
    """A client that was told of that root may well accept it."""
    for chain in (ca.issue("a.test"), odd_chain(ca)):
        assert distrusted_chain(chain.certificate, []) is None
        assert distrusted_chain(chain.certificate, None) is None


def test_a_root_in_the_file_that_signed_nothing_makes_no_chain_wrong(ca: Authority):
    issued = ca.issue("a.test")
    stranger = issued.with_chain(*issued.chain, certs.root("Stranger").certificate)
    assert distrusted_chain(stranger.certificate, []) is None


def test_nothing_is_said_about_what_has_a_finding_of_its_own(ca: Authority, wrong_key: Issued):
    for issued in (wrong_key, ca.issue("a.test", key=ec.generate_private_key(ec.SECP256K1()))):
        assert distrusted_chain(whole(ca, issued).certificate, []) is None
    assert distrusted_chain(certs.self_signed("a.test").certificate, []) is None


@pytest.mark.parametrize("names", [("192.0.2.7",), ("a..test",), ("*.lan", "bot.lan")], ids=str)
def test_the_chain_is_judged_and_not_the_names(ca: Authority, names: tuple[str, ...]):
    """Not every name can be asked for, and OpenSSL takes no wildcard right below a top-level domain."""
    assert distrusted_chain(whole(ca, ca.issue(*names)).certificate, []) is None


# The system


def test_the_system_trusts_somebody_or_nothing_is_said_about_it():
    roots = system_roots()
    assert roots is None or all(root.subject for root in roots)


def test_the_roots_are_those_of_the_system(
    public: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    assert system_roots() == [public.root]
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    assert system_roots() is None


def test_a_pair_cut_anywhere_never_takes_the_place_of_the_current_one(
    public: Authority, listener: ssl.SSLContext
):
    """At every byte of either file: what cannot be read is no pair, what can be read is worse."""
    current, new = public.issue("a.test").certificate, public.issue("a.test")
    entry = schema.Certificate(chain="chain.pem", key="key.pem")
    cuts = [(new.chain_pem[:end], new.key_pem) for end in range(len(new.chain_pem.rstrip()))]
    cuts += [(new.chain_pem, new.key_pem[:end]) for end in range(len(new.key_pem.rstrip()))]
    taken = []
    for chain, key in cuts:
        try:
            certificate = parse_pair(entry, "certificates[0]", Pair(chain, key, None, ()))
        except ConfigError:
            continue
        if objection(certificate, current, NOW, listener) is None:
            taken.append((len(chain), len(key)))
    assert taken == []
    whole = parse_pair(entry, "certificates[0]", Pair(new.chain_pem, new.key_pem, None, ()))
    assert objection(whole, current, NOW, listener) is None
