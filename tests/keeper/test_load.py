"""All certificates of a configuration, all problems at once, and everything there is to say about them."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from botproxy.config import schema
from botproxy.config.schema import Config
from botproxy.errors import ConfigError
from botproxy.keeper.load import Examined, Loaded, Located, examine_certificates, judge, prove_certificates
from tests import certs
from tests.certs import NOW, Authority, Issued
from tests.keeper.conftest import Configure, odd_chain

pytestmark = pytest.mark.usefixtures("public")


def rules(examined: Examined | Sequence[Located], index: int = 0) -> set[str]:
    findings = examined.findings if isinstance(examined, Examined) else examined
    return {located.finding.rule for located in findings if located.path == f"certificates[{index}]"}


def test_certificates_are_examined_in_the_order_of_the_configuration(
    configure: Configure, cert_for: Callable[..., Issued], tmp_path: Path
):
    sites = [cert_for("a.test"), cert_for("b.test")]
    entries = [site.write(tmp_path, f"site{number}") for number, site in enumerate(sites)]
    examined = examine_certificates(configure(*entries, hosts=("b.test", "a.test")), NOW)
    assert examined == Examined(
        tuple(
            Loaded(index, entry, site.certificate)
            for index, (entry, site) in enumerate(zip(entries, sites, strict=True))
        ),
        (),
        (),
    )
    assert [each.path for each in examined.certificates] == ["certificates[0]", "certificates[1]"]
    assert examined.servable() == [site.certificate for site in sites]


def test_an_encrypted_key_is_opened_with_the_password_file(
    configure: Configure, cert_for: Callable[..., Issued], tmp_path: Path
):
    site = cert_for("a.test")
    entry = site.write(tmp_path)
    Path(entry.key).write_bytes(certs.key_pem(site.key, b"sesame"))
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_bytes(b"sesame\n")
    opened = entry.model_copy(update={"password_file": str(password)})
    [loaded] = examine_certificates(configure(opened), NOW).certificates
    assert loaded.certificate.key == site.key_pem
    [problem] = examine_certificates(configure(entry), NOW).problems
    assert (problem.where, problem.path) == (entry.key, "certificates[0].key")
    assert "encrypted" in problem.says


def test_every_problem_of_every_certificate_is_told_at_once(
    configure: Configure, cert_for: Callable[..., Issued], wrong_key: Issued, tmp_path: Path
):
    fine, wrong = cert_for("a.test"), wrong_key.write(tmp_path, "wrong")
    swapped = cert_for("a.test").write(tmp_path, "swapped")
    swapped = schema.Certificate(chain=swapped.key, key=swapped.chain)
    missing = schema.Certificate(chain=f"{tmp_path}/none.pem", key=f"{tmp_path}/none.key")
    examined = examine_certificates(configure(swapped, missing, wrong, fine.write(tmp_path, "fine")), NOW)
    assert [(problem.where, problem.path) for problem in examined.problems] == [
        (swapped.chain, "certificates[0].chain"),
        (swapped.key, "certificates[0].key"),
        (missing.chain, "certificates[1].chain"),
        (missing.key, "certificates[1].key"),
    ]
    assert all(problem.hint for problem in examined.problems)
    assert [each.index for each in examined.certificates] == [2, 3]
    assert rules(examined, 2) == {"key_mismatch"}
    assert examined.servable() == [fine.certificate]


def test_an_expired_certificate_is_servable_and_reported(
    configure: Configure, expired_cert: Issued, tmp_path: Path
):
    examined = examine_certificates(configure(expired_cert.write(tmp_path)), NOW)
    assert rules(examined) == {"expired"}
    assert examined.servable() == [expired_cert.certificate]


def test_a_host_that_no_certificate_covers_is_reported_once_with_the_default(
    configure: Configure, cert_for: Callable[..., Issued], tmp_path: Path
):
    entries = [cert_for("a.test").write(tmp_path, "a"), cert_for("b.test").write(tmp_path, "b")]
    examined = examine_certificates(configure(*entries, hosts=("a.test", "b.test", "c.test")), NOW)
    [uncovered] = examined.findings
    assert (uncovered.path, uncovered.file) == ("certificates[0]", entries[0].chain)
    assert uncovered.finding.rule == "name_not_covered"
    assert '"c.test"' in uncovered.finding.sentence


def test_no_host_is_called_uncovered_while_a_certificate_is_missing(
    configure: Configure, cert_for: Callable[..., Issued], tmp_path: Path
):
    missing = schema.Certificate(chain=f"{tmp_path}/none.pem", key=f"{tmp_path}/none.key")
    site = cert_for("a.test")
    config = configure(site.write(tmp_path), missing, hosts=("a.test", "b.test"))
    assert rules(examine_certificates(config, NOW)) == set()
    alone = config.model_copy(update={"certificates": config.certificates[:1]})
    assert rules(examine_certificates(alone, NOW)) == {"name_not_covered"}
    left_out = examine_certificates(alone, NOW, (1,), complete=False)
    assert [each.path for each in left_out.certificates] == ["certificates[1]"]
    assert rules(left_out, 1) == set()
    loaded = [Loaded(0, config.certificates[0], site.certificate)]
    assert rules(judge(config, loaded, NOW, everything=False)) == set()
    assert rules(judge(config, loaded, NOW)) == {"name_not_covered"}


def test_a_certificate_that_is_never_served_is_reported(
    configure: Configure, cert_for: Callable[..., Issued], tmp_path: Path
):
    entries = [cert_for("a.test").write(tmp_path, name) for name in ("new", "old")]
    examined = examine_certificates(configure(*entries), NOW)
    assert (rules(examined, 0), rules(examined, 1)) == (set(), {"overshadowed"})


def test_a_certificate_that_no_route_uses_is_reported_unless_a_route_has_every_host(
    configure: Configure, cert_for: Callable[..., Issued], tmp_path: Path
):
    entries = [cert_for("a.test").write(tmp_path, "a"), cert_for("b.test").write(tmp_path, "b")]
    examined = examine_certificates(configure(*entries, hosts=("a.test",)), NOW)
    assert (rules(examined, 0), rules(examined, 1)) == (set(), {"unused_certificate"})
    everywhere = configure(*entries, routes=[{"hosts": ["a.test"]}, {}])
    assert rules(examine_certificates(everywhere, NOW), 1) == set()


def test_a_key_that_others_can_read_is_reported_with_its_certificate(
    configure: Configure, cert_for: Callable[..., Issued], tmp_path: Path
):
    entry = cert_for("a.test").write(tmp_path)
    Path(entry.key).chmod(0o644)
    [located] = examine_certificates(configure(entry), NOW).findings
    assert (located.path, located.file, located.finding.rule) == (
        "certificates[0]",
        entry.chain,
        "open_to_others",
    )


def test_openssl_is_asked_about_a_chain_that_no_rule_finds_wrong(
    configure: Configure, public: Authority, wrong_key: Issued, tmp_path: Path
):
    odd = odd_chain(public).write(tmp_path)
    assert rules(examine_certificates(configure(odd), NOW)) == {"chain_not_verified"}
    assert "chain_not_verified" not in rules(examine_certificates(configure(wrong_key.write(tmp_path)), NOW))


# In OpenSSL


@pytest.fixture
def config(configure: Configure) -> Config:
    """What it says of TLS is all that matters here."""
    return configure(schema.Certificate(chain="/nonexistent", key="/nonexistent"))


def test_what_was_loaded_works_in_openssl(config: Config, ca: Authority, listener: ssl.SSLContext):
    sites = ca.issue("a.test"), ca.issue("a.test", "*.b.test", key=certs.rsa_key())
    before = sorted(os.listdir("/proc/self/fd"))
    prove_certificates(config, [site.certificate for site in sites], listener)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_what_openssl_cannot_serve_is_a_problem(
    config: Config, ca: Authority, wrong_key: Issued, listener: ssl.SSLContext
):
    # Browsers know no such curve, and neither do the groups that OpenSSL offers.
    odd = ca.issue("a.test", key=ec.generate_private_key(ec.SECP256K1()))
    before = sorted(os.listdir("/proc/self/fd"))
    for site in (odd, wrong_key):
        with pytest.raises(ConfigError, match="OpenSSL cannot serve") as caught:
            prove_certificates(config, [ca.issue("b.test").certificate, site.certificate], listener)
        assert caught.value.problems[0].hint
    assert sorted(os.listdir("/proc/self/fd")) == before
