"""slowhttptest against botproxy: it finds the service available, and its connections do not stay."""

from __future__ import annotations

import pytest

from tests.attacks.bill import LIMIT, Meter
from tests.attacks.cases import SHORT
from tests.attacks.clean import Clean
from tests.attacks.front import front
from tests.attacks.slowhttptest import MODES, running_slowhttptest
from tests.harness import descriptors_of, eventually, program

CONNECTIONS = 200
SECONDS = 30
"""How long it would go on."""


@pytest.mark.parametrize("mode", MODES)
def test_slowhttptest_is_cut_off_and_nobody_else_notices(mode: str) -> None:
    tool = program("slowhttptest")
    with front(SHORT, {}) as place, Clean(place.proxied.port, place.ca, 10) as clean:
        clean.wait(4)
        (worker,) = place.proxied.workers()
        slots = descriptors_of(worker)
        meter = Meter(place.proxied).begin()
        with running_slowhttptest(
            tool, mode, place.proxied.port, connections=CONNECTIONS, rate=CONNECTIONS, seconds=SECONDS
        ) as attack:
            eventually(lambda: descriptors_of(worker) > slots + CONNECTIONS // 4, "it does not attack")
            eventually(lambda: descriptors_of(worker) <= slots + 4, "slots are not free again")
            cpu, used = meter.cpu(), attack.cpu()
            probes = attack.end()
        clean.wait(2)
    assert not clean.failures
    assert probes
    assert set(probes) == {"YES"}
    assert cpu <= LIMIT * max(used, 0.01)
