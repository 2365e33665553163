"""Every rule speaks when it is broken, and only then."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID

from botproxy.tls.certificates import Certificate
from botproxy.tls.rules import Finding, examine, hsts_allowed, overshadowed, unused
from tests import certs
from tests.certs import DAY, MUST_STAPLE, NOW, Authority, Issued


def read(issued: Issued) -> Certificate:
    return issued.certificate


def findings(
    issued: Issued,
    *hosts: str,
    now: datetime = NOW,
    roots: Sequence[x509.Certificate] | None = None,
) -> dict[str, Finding]:
    found = examine(read(issued), now, hosts, roots)
    for finding in found:
        assert finding.fix
        assert finding.sentence.isprintable()
    return {finding.rule: finding for finding in found}


def test_nothing_is_said_about_a_good_certificate(ca: Authority):
    assert ca.root is not None
    assert findings(ca.issue("a.test"), "a.test", roots=[ca.root]) == {}
    assert findings(ca.issue("a.test"), "a.test", roots=None) == {}


# Key and strength


def test_a_foreign_key_stops_the_start(wrong_key: Issued):
    finding = findings(wrong_key)["key_mismatch"]
    assert finding.severity == "error"
    assert finding.stops


def test_a_chain_file_without_the_certificate_is_told_from_a_foreign_key(ca: Authority):
    found = findings(ca.issue("a.test").with_chain(*ca.above))
    assert found["no_leaf"].stops
    assert "fullchain.pem" in found["no_leaf"].fix
    assert "key_mismatch" not in found


def test_a_short_rsa_key_stops_the_start(ca: Authority):
    assert findings(ca.issue("a.test", key=certs.rsa_key(1024)))["weak_key"].stops
    assert findings(ca.issue("a.test", key=certs.rsa_key(2048))) == {}


def test_a_sha1_signature_stops_the_start():
    # Today's libraries do not make one: a signature algorithm is changed in the finished certificate.
    der = certs.build("a.test", certs.rsa_key(), issuer=certs.root().certificate, signer=certs.rsa_key())
    sha256, sha1 = bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d010105")
    data = der.public_bytes(Encoding.DER)
    assert data.count(sha256) == 2
    leaf = x509.load_der_x509_certificate(data.replace(sha256, sha1))
    finding = findings(Issued((leaf,), certs.rsa_key()))["weak_signature"]
    assert finding.stops
    assert "sha1" in finding.sentence


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (ec.generate_private_key(ec.SECP256R1()), False),
        (ec.generate_private_key(ec.SECP384R1()), False),
        (ec.generate_private_key(ec.SECP521R1()), True),
        (ec.generate_private_key(ec.SECP256K1()), True),
        (ed25519.Ed25519PrivateKey.generate(), True),
    ],
    ids=["P-256", "P-384", "P-521", "secp256k1", "Ed25519"],
)
def test_keys_that_browsers_do_not_know_are_reported(ca: Authority, key: certs.Key, said: bool):
    found = findings(ca.issue("a.test", key=key))
    assert ("unusual_key" in found) is said


# Time


def test_an_expired_certificate_is_an_error_and_is_served(expired_cert: Issued):
    found = findings(expired_cert)
    assert found["expired"].severity == "error"
    assert not found["expired"].stops
    assert "expires_soon" not in found


def test_validity_begins_and_ends_to_the_second(ca: Authority):
    issued = ca.issue("a.test", not_before=NOW, not_after=NOW + 90 * DAY)
    second = timedelta(seconds=1)
    assert "not_yet_valid" in findings(issued, now=NOW - second)
    assert findings(issued, now=NOW) == {}
    assert "expires_soon" in findings(issued, now=NOW + 90 * DAY - second)
    assert "expired" in findings(issued, now=NOW + 90 * DAY)


def test_a_renewal_that_is_due_is_a_warning(ca: Authority):
    issued = ca.issue("a.test", not_before=NOW, not_after=NOW + 45 * DAY)
    due = NOW + 30 * DAY
    assert "expires_soon" not in findings(issued, now=due - timedelta(seconds=1))
    assert findings(issued, now=due)["expires_soon"].severity == "warning"


def test_an_expired_intermediate_is_an_error(ca: Authority):
    key = certs.ecdsa_key()
    old = certs.build("Old", key, issuer=ca.certificate, signer=ca.key, not_after=NOW - DAY, ca=True)
    issued = Authority(old, key, (old, *ca.above)).issue("a.test")
    assert findings(issued)["chain_expired"].severity == "error"


# Chain


def test_a_missing_intermediate_is_an_error_that_names_the_file_to_use(ca: Authority):
    issued = ca.issue("a.test")
    for roots in (None, [ca.root] if ca.root else []):
        finding = findings(issued.with_chain(issued.leaf), roots=roots)["missing_intermediate"]
        assert finding.severity == "error"
        assert not finding.stops
        assert "Telegram and curl will refuse it" in finding.sentence
        assert "fullchain.pem" in finding.fix


def test_the_address_of_a_missing_intermediate_is_told(ca: Authority):
    url = "http://ca.test/intermediate.der"
    access = x509.AuthorityInformationAccess(
        [
            x509.AccessDescription(
                AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(url)
            )
        ]
    )
    issued = ca.issue("a.test", extensions=(access,))
    assert url in findings(issued.with_chain(issued.leaf))["missing_intermediate"].fix


def test_a_leaf_below_a_trusted_root_lacks_nothing():
    root = certs.root()
    assert findings(root.issue("a.test"), roots=[root.certificate]) == {}


def test_a_chain_to_a_root_that_nobody_trusts_is_a_warning(ca: Authority):
    issued = ca.issue("a.test")
    elsewhere = [certs.root("Elsewhere").certificate]
    assert findings(issued, roots=elsewhere)["missing_intermediate"].severity == "warning"
    assert ca.root is not None
    whole = findings(issued.with_chain(*issued.chain, ca.root), roots=elsewhere)
    assert whole["private_ca"].severity == "warning"
    assert "missing_intermediate" not in whole


def test_a_root_of_the_same_name_is_not_the_root(ca: Authority):
    impostor = certs.root().certificate
    assert ca.root is not None
    assert impostor.subject == ca.root.subject
    assert "missing_intermediate" in findings(ca.issue("a.test"), roots=[impostor])


def test_an_intermediate_that_did_not_sign_is_an_error(ca: Authority):
    issued = ca.issue("a.test")
    impostor = certs.root().intermediate().certificate
    found = findings(issued.with_chain(issued.leaf, impostor))
    assert found["chain_signature"].severity == "error"
    assert "missing_intermediate" not in found


def test_a_wrong_order_is_repaired_and_reported(ca: Authority):
    issued = ca.issue("a.test")
    found = findings(issued.with_chain(*reversed(issued.chain)))
    assert set(found) == {"order"}
    assert found["order"].severity == "warning"


def test_a_root_in_the_chain_is_reported(ca: Authority):
    issued = ca.issue("a.test")
    assert ca.root is not None
    found = findings(issued.with_chain(*issued.chain, ca.root), roots=[ca.root])
    assert {rule: finding.severity for rule, finding in found.items()} == {"root_in_chain": "info"}


def test_a_duplicate_is_reported(ca: Authority):
    issued = ca.issue("a.test")
    found = findings(issued.with_chain(*issued.chain, *ca.above))
    assert {rule: finding.severity for rule, finding in found.items()} == {"duplicate": "info"}


def test_a_stranger_in_the_chain_is_reported(ca: Authority):
    issued = ca.issue("a.test")
    found = findings(issued.with_chain(*issued.chain, certs.root("Elsewhere").certificate))
    assert {rule: finding.severity for rule, finding in found.items()} == {"unrelated": "warning"}


# Leaf and names


def test_must_staple_is_an_error(ca: Authority):
    assert findings(ca.issue("a.test", extensions=(MUST_STAPLE,)))["must_staple"].severity == "error"


def test_a_ca_as_server_certificate_is_an_error_unless_it_is_self_signed(ca: Authority):
    assert findings(ca.issue("a.test", ca=True))["leaf_is_ca"].severity == "error"
    assert set(findings(certs.self_signed("a.test", ca=True))) == {"self_signed"}


def test_self_signed_is_a_warning_that_names_the_upload():
    finding = findings(certs.self_signed("a.test"), roots=[])["self_signed"]
    assert finding.severity == "warning"
    assert "setWebhook" in finding.sentence


@pytest.mark.parametrize("name", ["(STAGING) Artificial Apricot R3", "Fake LE Intermediate X1"])
def test_a_staging_ca_is_a_warning_and_gets_no_hsts(name: str):
    issued = certs.root().intermediate(name).issue("a.test")
    assert findings(issued)["staging"].severity == "warning"
    assert not hsts_allowed(read(issued))


def test_hsts_is_for_certificates_that_browsers_may_accept(ca: Authority):
    assert hsts_allowed(read(ca.issue("a.test")))
    assert not hsts_allowed(read(certs.self_signed("a.test")))


def test_each_host_that_is_not_covered_is_named(ca: Authority):
    certificate = read(ca.issue("a.test", "*.b.test"))
    found = examine(certificate, NOW, ["a.test", "x.b.test", "*.b.test", "b.test", "[::1]"], None)
    assert [finding.rule for finding in found] == ["name_not_covered"] * 2
    assert '"b.test"' in found[0].sentence
    assert '"[::1]"' in found[1].sentence
    assert not found[0].stops


def test_a_certificate_without_names_says_that_the_cn_does_not_count():
    key = certs.ecdsa_key()
    found = findings(Issued((certs.build("a.test", key),), key), "a.test")
    assert found["no_names"].severity == "error"
    assert "name_not_covered" not in found


def test_a_certificate_behind_earlier_ones_of_its_type_is_never_served(ca: Authority):
    first, second = read(ca.issue("a.test", "b.test")), read(ca.issue("a.test"))
    rsa, other = read(ca.issue("a.test", key=certs.rsa_key())), read(ca.issue("a.test", "c.test"))
    assert overshadowed([first, rsa, other, second]) == [3]
    assert overshadowed([second, first]) == []
    key = certs.ecdsa_key()
    assert overshadowed([read(Issued((certs.build("nameless", key),), key))]) == []


def test_a_certificate_is_unused_when_none_of_its_names_fits_a_host(ca: Authority):
    served, other, wildcard = (read(ca.issue(name)) for name in ("a.test", "b.test", "*.c.test"))
    assert unused([served, other, wildcard], ["a.test", "x.c.test"]) == [1]
    assert unused([served, other, wildcard], ["*.test"]) == [2]
    assert unused([wildcard], ["*.c.test"]) == []
    assert unused([wildcard], ["x.y.c.test"]) == [0]
