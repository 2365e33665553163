"""All certificates of a configuration, all problems at once, and what is served in spite of a finding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from botproxy.config import schema
from botproxy.errors import ConfigError, Problem
from botproxy.keeper.load import (
    Loaded,
    examine_certificates,
    load_certificates,
    prove_certificates,
    system_roots,
)
from botproxy.tls.context import listener_context
from tests import certs
from tests.certs import NOW, Authority, Issued
from tests.keeper.conftest import Configure


def rules(loaded: Loaded, path: str) -> set[str]:
    """What was found, except that the system does not know the tests' CA."""
    unknown = {"missing_intermediate", "private_ca"}
    return {located.finding.rule for located in loaded.findings if located.path == path} - unknown


def problems(configure: Configure, *entries: schema.Certificate, **keys: object) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load_certificates(configure(*entries, **keys), NOW)
    assert all(problem.hint for problem in caught.value.problems)
    return caught.value.problems


def test_certificates_are_loaded_in_the_order_of_the_configuration(
    configure: Configure, cert_for: Callable[..., Issued], tmp_path: Path
):
    sites = [cert_for("a.test"), cert_for("b.test")]
    entries = [site.write(tmp_path, f"site{number}") for number, site in enumerate(sites)]
    loaded = load_certificates(configure(*entries, hosts=("b.test", "a.test")), NOW)
    assert [certificate.leaf for certificate in loaded.certificates] == [site.leaf for site in sites]
    assert rules(loaded, "certificates[0]") == rules(loaded, "certificates[1]") == set()


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
    assert load_certificates(configure(opened), NOW).certificates[0].key == site.key_pem
    [problem] = problems(configure, entry)
    assert (problem.where, problem.path) == (entry.key, "certificates[0].key")
    assert "encrypted" in problem.says


def test_every_problem_of_every_certificate_is_told_at_once(
    configure: Configure, cert_for: Callable[..., Issued], wrong_key: Issued, tmp_path: Path
):
    swapped = cert_for("a.test").write(tmp_path, "swapped")
    swapped = schema.Certificate(chain=swapped.key, key=swapped.chain)
    missing = schema.Certificate(chain=f"{tmp_path}/none.pem", key=f"{tmp_path}/none.key")
    found = problems(configure, swapped, missing, wrong_key.write(tmp_path, "wrong"), hosts=("z.test",))
    assert [(problem.where, problem.path) for problem in found] == [
        (swapped.chain, "certificates[0].chain"),
        (swapped.key, "certificates[0].key"),
        (missing.chain, "certificates[1].chain"),
        (missing.key, "certificates[1].key"),
        (f"{tmp_path}/wrong.pem", "certificates[2]"),
    ]
    assert "belongs to another certificate" in found[-1].says


def test_an_expired_certificate_is_loaded_and_reported(
    configure: Configure, expired_cert: Issued, tmp_path: Path
):
    loaded = load_certificates(configure(expired_cert.write(tmp_path)), NOW)
    assert len(loaded.certificates) == 1
    assert rules(loaded, "certificates[0]") == {"expired"}


def test_a_host_that_no_certificate_covers_is_reported_once_with_the_default(
    configure: Configure, cert_for: Callable[..., Issued], tmp_path: Path
):
    entries = [cert_for("a.test").write(tmp_path, "a"), cert_for("b.test").write(tmp_path, "b")]
    loaded = load_certificates(configure(*entries, hosts=("a.test", "b.test", "c.test")), NOW)
    uncovered = [located for located in loaded.findings if located.finding.rule == "name_not_covered"]
    assert [(located.path, located.file) for located in uncovered] == [("certificates[0]", entries[0].chain)]
    assert '"c.test"' in uncovered[0].finding.sentence


def test_a_certificate_that_is_never_served_is_reported(
    configure: Configure, cert_for: Callable[..., Issued], tmp_path: Path
):
    entries = [cert_for("a.test").write(tmp_path, name) for name in ("new", "old")]
    loaded = load_certificates(configure(*entries), NOW)
    assert rules(loaded, "certificates[0]") == set()
    assert rules(loaded, "certificates[1]") == {"overshadowed"}


def test_a_certificate_that_no_route_uses_is_reported_unless_a_route_has_every_host(
    configure: Configure, cert_for: Callable[..., Issued], tmp_path: Path
):
    entries = [cert_for("a.test").write(tmp_path, "a"), cert_for("b.test").write(tmp_path, "b")]
    loaded = load_certificates(configure(*entries, hosts=("a.test",)), NOW)
    assert rules(loaded, "certificates[0]") == set()
    assert rules(loaded, "certificates[1]") == {"unused_certificate"}
    everywhere = configure(*entries, routes=[{"hosts": ["a.test"]}, {}])
    assert rules(load_certificates(everywhere, NOW), "certificates[1]") == set()


def test_no_host_is_called_uncovered_while_a_certificate_cannot_be_read(
    configure: Configure, cert_for: Callable[..., Issued], tmp_path: Path
):
    missing = schema.Certificate(chain=f"{tmp_path}/none.pem", key=f"{tmp_path}/none.key")
    config = configure(cert_for("a.test").write(tmp_path), missing, hosts=("a.test", "b.test"))
    examined = examine_certificates(config, NOW)
    assert [problem.path for problem in examined.problems] == ["certificates[1].chain", "certificates[1].key"]
    assert "name_not_covered" not in {located.finding.rule for located in examined.findings}


def test_a_key_that_others_can_read_is_reported_with_its_certificate(
    configure: Configure, cert_for: Callable[..., Issued], tmp_path: Path
):
    entry = cert_for("a.test").write(tmp_path)
    Path(entry.key).chmod(0o644)
    assert "open_to_others" in rules(load_certificates(configure(entry), NOW), "certificates[0]")


def test_what_was_loaded_works_in_openssl(configure: Configure, ca: Authority, tmp_path: Path):
    entries = [
        ca.issue("a.test").write(tmp_path, "ecdsa"),
        ca.issue("a.test", "*.b.test", key=certs.rsa_key()).write(tmp_path, "rsa"),
    ]
    config = configure(*entries)
    prove_certificates(config, load_certificates(config, NOW), listener_context(config.tls))


def test_what_openssl_cannot_serve_is_a_problem(configure: Configure, tmp_path: Path):
    # Browsers know no such curve, and neither do the groups that OpenSSL offers.
    odd = ec.generate_private_key(ec.SECP256K1())
    config = configure(certs.root().intermediate().issue("a.test", key=odd).write(tmp_path))
    loaded = load_certificates(config, NOW)
    with pytest.raises(ConfigError, match="OpenSSL cannot serve"):
        prove_certificates(config, loaded, listener_context(config.tls))


def test_the_system_trusts_somebody_or_nothing_is_said_about_it():
    roots = system_roots()
    assert roots is None or all(root.subject for root in roots)
