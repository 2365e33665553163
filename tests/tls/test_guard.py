"""A renewal may not make things worse: each rule objects when it is broken, and only then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import pytest
from cryptography import x509

from botproxy.tls.guard import EARLIER, is_fine, objections
from tests import certs
from tests.certs import DAY, MUST_STAPLE, NOW, Authority, Issued

SECOND = timedelta(seconds=1)


def rules(
    new: Issued,
    current: Issued | None,
    *,
    now: datetime = NOW,
    roots: Sequence[x509.Certificate] | None = None,
    forced: bool = False,
) -> list[str]:
    found = objections(new.certificate, current.certificate if current else None, now, roots, forced=forced)
    for finding in found:
        assert finding.severity == "error"
        assert finding.sentence.isprintable()
        assert finding.fix
    return [finding.rule for finding in found]


def expired_middle(ca: Authority) -> Issued:
    key = certs.ecdsa_key()
    old = certs.build("Old", key, issuer=ca.certificate, signer=ca.key, not_after=NOW - DAY, ca=True)
    return Authority(old, key, (old, *ca.above)).issue("a.test")


def without_names(ca: Authority) -> Issued:
    key = certs.ecdsa_key()
    return Issued((certs.build("a.test", key, issuer=ca.certificate, signer=ca.key), *ca.above), key)


def staging(*names: str) -> Issued:
    return certs.root().intermediate("(STAGING) Counterfeit Cashew R10").issue(*names)


BAD: dict[str, Callable[[Authority], Issued]] = {
    "expired": lambda ca: ca.issue("a.test", not_before=NOW - 90 * DAY, not_after=NOW - SECOND),
    "not_yet_valid": lambda ca: ca.issue("a.test", not_before=NOW + SECOND),
    "chain_expired": expired_middle,
    "missing_intermediate": lambda ca: (site := ca.issue("a.test")).with_chain(site.leaf),
    "chain_signature": lambda ca: (site := ca.issue("a.test")).with_chain(
        site.leaf, certs.root().intermediate().certificate
    ),
    "must_staple": lambda ca: ca.issue("a.test", extensions=(MUST_STAPLE,)),
    "leaf_is_ca": lambda ca: ca.issue("a.test", ca=True),
}
"""Certificates that can be served and that clients refuse, by the rule of `tls.rules` they break."""
WORSE: dict[str, Callable[[Authority], Issued]] = {
    **BAD,
    "no_names": without_names,
    "loses_names": lambda ca: ca.issue("b.test"),
    "turns_self_signed": lambda ca: certs.self_signed("a.test"),
    "turns_staging": lambda ca: staging("a.test"),
}
UNSERVABLE: dict[str, Callable[[Authority], Issued]] = {
    "key_mismatch": lambda ca: ca.issue("a.test").with_key(certs.ecdsa_key()),
    "no_leaf": lambda ca: ca.issue("a.test").with_chain(*ca.above),
    "weak_key": lambda ca: ca.issue("a.test", key=certs.rsa_key(1024)),
}


# Nothing to lose, nothing to gain


def test_a_renewal_like_the_current_one_is_welcome(ca: Authority):
    assert ca.root is not None
    for roots in (None, [ca.root], [certs.root("Elsewhere").certificate]):
        assert rules(ca.issue("a.test"), ca.issue("a.test"), roots=roots) == []


@pytest.mark.parametrize("rule", WORSE)
def test_the_first_certificate_may_be_anything_that_can_be_served(ca: Authority, rule: str):
    assert rules(WORSE[rule](ca), None) == []


@pytest.mark.parametrize("rule", WORSE)
def test_anything_that_can_be_served_may_follow_a_certificate_that_is_of_no_use(
    ca: Authority, rule: str, expired_cert: Issued, wrong_key: Issued
):
    for current in (expired_cert, wrong_key, ca.issue("a.test", not_before=NOW + DAY)):
        assert rules(WORSE[rule](ca), current) == []


@pytest.mark.parametrize("rule", WORSE)
def test_who_knows_better_may_serve_anything_that_can_be_served(ca: Authority, rule: str):
    assert rules(WORSE[rule](ca), ca.issue("a.test"), forced=True) == []


@pytest.mark.parametrize("rule", UNSERVABLE)
def test_what_cannot_be_served_is_refused_whatever_is_served_and_whoever_wants_it(
    ca: Authority, rule: str, expired_cert: Issued
):
    new = UNSERVABLE[rule](ca)
    for current in (None, expired_cert, ca.issue("a.test")):
        for forced in (True, False):
            assert rules(new, current, forced=forced) == [rule]


def test_a_certificate_is_fine_from_its_first_second_to_its_last(ca: Authority, wrong_key: Issued):
    certificate = ca.issue("a.test", not_before=NOW, not_after=NOW + DAY).certificate
    assert [is_fine(certificate, NOW + at) for at in (-SECOND, 0 * DAY, DAY - SECOND, DAY)] == [
        False,
        True,
        True,
        False,
    ]
    assert not is_fine(wrong_key.certificate, NOW)


# Errors


@pytest.mark.parametrize("rule", BAD)
def test_a_new_error_is_refused_and_one_that_the_current_one_has_is_not(ca: Authority, rule: str):
    assert rules(BAD[rule](ca), ca.issue("a.test")) == [rule]
    if rule not in ("expired", "not_yet_valid"):  # then there is nothing to lose
        assert rules(BAD[rule](ca), BAD[rule](ca)) == []


def test_another_error_than_the_current_ones_is_refused(ca: Authority):
    staple = ca.issue("a.test", extensions=(MUST_STAPLE,))
    assert rules(BAD["missing_intermediate"](ca), staple) == ["missing_intermediate"]
    both = staple.with_chain(staple.leaf)
    assert rules(both, staple) == ["missing_intermediate"]
    assert rules(staple, both) == []


# The chain


def two_above() -> Authority:
    """A private CA of which a server sends two intermediates: what issues, and what is below the root."""
    return certs.root("Own").intermediate("Upper").intermediate("Lower")


def cut(issued: Issued) -> Issued:
    return issued.with_chain(*issued.chain[:-1])


@pytest.mark.parametrize("roots", [None, [certs.root("Elsewhere").certificate]], ids=["unknown", "others"])
def test_a_chain_may_not_stop_short_of_an_issuer_that_the_current_one_provides(
    roots: list[x509.Certificate] | None,
):
    ca = two_above()
    current = ca.issue("a.test")
    assert rules(cut(current), current, roots=roots) == ["missing_intermediate"]
    assert rules(cut(ca.issue("a.test")), current, roots=roots) == ["missing_intermediate"]
    assert rules(cut(cut(current)), current, roots=roots) == ["missing_intermediate"]
    assert rules(cut(current), current, roots=roots, forced=True) == []
    [finding] = objections(cut(current).certificate, current.certificate, NOW, roots)
    assert '"Upper"' in finding.sentence
    assert "--force" in finding.fix


def test_a_chain_from_another_issuer_may_not_stop_short_either():
    upper = certs.root("Own").intermediate("Upper")
    current = upper.intermediate("Lower").issue("a.test")
    other = upper.intermediate("Other Lower").issue("a.test")
    assert rules(cut(other), current) == ["missing_intermediate"]
    assert rules(other, current) == []


def test_a_chain_is_as_good_without_what_nobody_needs():
    ca = two_above()
    assert ca.root is not None
    current = ca.issue("a.test")
    # The root is not sent, so it is not missed; and whoever has the issuer needs no copy of it.
    assert rules(current, current.with_chain(*current.chain, ca.root)) == []
    assert rules(cut(current), current, roots=[current.chain[-1]]) == []
    # Nothing is lost by what was missing before, and nothing by another way up.
    assert rules(cut(current), cut(current)) == []
    assert rules(certs.root("New").intermediate("New Lower").issue("a.test"), current) == []


def test_an_upper_intermediate_that_has_expired_is_not_missed():
    root = certs.root("Old")
    key = certs.ecdsa_key()
    crossed = certs.build(
        "Upper", key, issuer=root.certificate, signer=root.key, not_after=NOW - DAY, ca=True
    )
    current = Authority(crossed, key, (crossed,)).intermediate("Lower").issue("a.test")
    assert rules(cut(current), current) == []


# Warnings


def test_a_warning_is_no_objection(ca: Authority):
    odd = ca.issue("a.test", not_before=NOW - 89 * DAY, not_after=NOW + DAY)
    assert rules(odd.with_chain(*reversed(odd.chain)), ca.issue("a.test")) == []


# Names


@pytest.mark.parametrize(
    ("new", "current", "kept"),
    [
        (["b.test", "a.test", "c.test"], ["a.test", "b.test"], True),
        (["A.test"], ["a.test"], True),
        (["*.a.test"], ["x.a.test", "y.a.test"], True),
        (["192.0.2.7", "2001:db8::7"], ["2001:db8::7"], True),
        (["a.test"], ["a.test", "b.test"], False),
        (["*.a.test"], ["a.test"], False),
        (["*.a.test"], ["x.y.a.test"], False),
        (["x.a.test", "a.test"], ["*.a.test"], False),
        (["*.a.test"], ["*.b.a.test"], False),
        (["*.test"], ["192.0.2.7"], False),
    ],
    ids=str,
)
def test_every_name_is_kept(ca: Authority, new: list[str], current: list[str], kept: bool):
    assert rules(ca.issue(*new), ca.issue(*current)) == ([] if kept else ["loses_names"])


def test_lost_names_are_told_and_how_to_insist(ca: Authority):
    current = ca.issue("a.test", *(f"{n}.b.test" for n in range(9)))
    [finding] = objections(ca.issue("a.test").certificate, current.certificate, NOW, None)
    assert "0.b.test, 1.b.test, 2.b.test, 3.b.test, 4.b.test, ..." in finding.sentence
    assert "(new: a.test)" in finding.sentence
    assert "--force" in finding.fix


def test_a_certificate_without_any_name_says_both(ca: Authority):
    assert rules(without_names(ca), ca.issue("a.test")) == ["no_names", "loses_names"]
    assert rules(without_names(ca), without_names(ca)) == []


# Trust


def test_self_signed_follows_self_signed_alone(ca: Authority):
    own = certs.self_signed("a.test")
    assert rules(own, ca.issue("a.test")) == ["turns_self_signed"]
    assert rules(own, staging("a.test")) == ["turns_self_signed"]
    assert rules(own, certs.self_signed("a.test")) == []
    assert rules(ca.issue("a.test"), own) == []


def test_staging_follows_staging_alone(ca: Authority):
    assert rules(staging("a.test"), ca.issue("a.test")) == ["turns_staging"]
    assert rules(staging("a.test"), staging("a.test")) == []
    assert rules(ca.issue("a.test"), staging("a.test")) == []


def test_a_ca_that_the_system_does_not_trust_follows_such_a_ca_alone(ca: Authority):
    assert ca.root is not None
    public, private = ca.issue("a.test"), certs.root("Own").intermediate("Own Lower").issue("a.test")
    assert rules(private, public, roots=[ca.root]) == ["turns_private"]
    assert rules(private, public, roots=None) == []
    assert rules(private, private, roots=[ca.root]) == []
    assert rules(public, private, roots=[ca.root]) == []


# Dates


def test_an_old_copy_has_the_same_key_and_ends_more_than_a_day_earlier(ca: Authority):
    key = certs.ecdsa_key()
    current = ca.issue("a.test", key=key, not_after=NOW + 60 * DAY)
    earlier = NOW + 60 * DAY - EARLIER
    assert rules(ca.issue("a.test", key=key, not_after=earlier - SECOND), current) == ["ends_earlier"]
    assert rules(ca.issue("a.test", key=key, not_after=earlier), current) == []
    assert rules(ca.issue("a.test", key=key, not_after=NOW + 61 * DAY), current) == []
    assert rules(ca.issue("a.test", not_after=NOW + 6 * DAY), current) == []


def test_a_staged_renewal_is_welcome_once_it_is_valid(ca: Authority):
    new, current = ca.issue("a.test", not_before=NOW + DAY), ca.issue("a.test")
    assert rules(new, current, now=NOW + DAY - SECOND) == ["not_yet_valid"]
    assert rules(new, current, now=NOW + DAY) == []


def test_everything_that_speaks_against_it_is_told(ca: Authority):
    new = certs.self_signed("b.test")
    current = ca.issue("a.test")
    assert rules(new, current) == ["loses_names", "turns_self_signed"]
