"""The states of one certificate on its way from the files to the clients.

    active -> changed -> settling -> validating -> preparing -> committed -> verifying -> active

with the exits `rejected` and `rolled_back`, which both leave the last good certificate
served. A step that is not in the table is a bug of ours. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType


class State(Enum):
    """Where a certificate is."""

    ACTIVE = "active"
    """Served, and what the files hold."""
    CHANGED = "changed"
    """The files hold something else."""
    SETTLING = "settling"
    """They are not whole yet, or not readable; they are looked at again."""
    VALIDATING = "validating"
    PREPARING = "preparing"
    """Every worker loads it and tries it."""
    COMMITTED = "committed"
    """It is the last good one; workers change over."""
    VERIFYING = "verifying"
    """It is asked for over the listener."""
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"


TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.ACTIVE: frozenset({State.CHANGED, State.PREPARING}),
        State.CHANGED: frozenset({State.SETTLING, State.VALIDATING, State.ACTIVE, State.REJECTED}),
        State.SETTLING: frozenset({State.VALIDATING, State.ACTIVE, State.PREPARING, State.REJECTED}),
        State.VALIDATING: frozenset({State.PREPARING, State.REJECTED}),
        State.PREPARING: frozenset({State.COMMITTED, State.REJECTED, State.ACTIVE}),
        State.COMMITTED: frozenset({State.VERIFYING, State.ROLLED_BACK}),
        State.VERIFYING: frozenset({State.ACTIVE, State.ROLLED_BACK}),
        State.REJECTED: frozenset({State.CHANGED, State.ACTIVE, State.PREPARING}),
        State.ROLLED_BACK: frozenset({State.CHANGED, State.ACTIVE, State.PREPARING}),
    }
)
"""To where each state may go. `preparing` straight from rest is an operator's rollback; from there back
to rest, nobody answered and it is tried again."""


class WrongStep(Exception):
    """A change of state that the table does not know."""


def step(was: State, state: State) -> State:
    """`state`, if it may follow `was`. Raises WrongStep."""
    if state not in TRANSITIONS[was]:
        raise WrongStep(f"{was.value} -> {state.value}")
    return state
