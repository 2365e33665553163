"""Fixtures that every folder of tests may use."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from tests import certs
from tests.certs import Authority, Issued

# How long an example takes is the machine's affair, which may be doing something else just then.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def ca() -> Authority:
    """A CA one below its root, as public ones are."""
    return certs.root().intermediate()


@pytest.fixture(scope="session")
def cert_for(ca: Authority) -> Callable[..., Issued]:
    """`cert_for("bot.example.com")`: a good certificate; takes what `Authority.issue` takes."""
    return ca.issue


@pytest.fixture(scope="session")
def expired_cert(ca: Authority) -> Issued:
    return ca.issue(
        "bot.example.com", not_before=certs.NOW - 90 * certs.DAY, not_after=certs.NOW - 2 * certs.DAY
    )


@pytest.fixture(scope="session")
def wrong_key(ca: Authority) -> Issued:
    """A certificate beside the key of another one."""
    return ca.issue("bot.example.com").with_key(certs.ecdsa_key())
