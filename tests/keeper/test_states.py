"""Steps from state to state: those of the table, and no other."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from botproxy.keeper.states import TRANSITIONS, State, WrongStep, step

S = State
ALLOWED = {
    S.ACTIVE: {S.CHANGED, S.PREPARING},
    S.CHANGED: {S.SETTLING, S.VALIDATING, S.ACTIVE, S.REJECTED},
    S.SETTLING: {S.VALIDATING, S.ACTIVE, S.PREPARING, S.REJECTED},
    S.VALIDATING: {S.PREPARING, S.REJECTED},
    S.PREPARING: {S.COMMITTED, S.REJECTED, S.ACTIVE},
    S.COMMITTED: {S.VERIFYING, S.ROLLED_BACK},
    S.VERIFYING: {S.ACTIVE, S.ROLLED_BACK},
    S.REJECTED: {S.CHANGED, S.ACTIVE, S.PREPARING},
    S.ROLLED_BACK: {S.CHANGED, S.ACTIVE, S.PREPARING},
}


@pytest.mark.parametrize(("was", "state"), list(product(State, State)), ids=lambda state: state.value)
def test_a_step_is_in_the_table_or_refused(was: State, state: State):
    if state in ALLOWED[was]:
        assert step(was, state) is state
    else:
        with pytest.raises(WrongStep, match=f"{was.value} -> {state.value}"):
            step(was, state)


def test_a_renewal_goes_the_whole_way():
    way = [S.ACTIVE, S.CHANGED, S.SETTLING, S.VALIDATING, S.PREPARING, S.COMMITTED, S.VERIFYING, S.ACTIVE]
    for was, state in pairwise(way):
        assert step(was, state) is state


def test_nothing_is_served_that_was_not_prepared_and_nothing_is_refused_that_is_served():
    assert {was for was in State if S.COMMITTED in TRANSITIONS[was]} == {S.PREPARING}
    assert not {S.COMMITTED, S.VERIFYING} & {was for was in State if S.REJECTED in TRANSITIONS[was]}
