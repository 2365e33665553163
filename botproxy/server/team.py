"""Those who serve one configuration: a keeper, a worker in each slot, and what they share.

A change of the configuration, or of the ticket keys, is a new team beside the old one,
which takes over when all of it is ready. Making a team checks everything that can be
checked before a process is forked. Who is started and who retires is `server.supervisor`'s
business.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from botproxy.errors import ConfigError, Problem
from botproxy.server import privileges
from botproxy.server.census import Census, Seats, SharedLimiter
from botproxy.server.children import Child
from botproxy.server.privileges import Account
from botproxy.server.sockets import Arrangement, Listening
from botproxy.tls.context import listener_context
from botproxy.upstream.dial import verifications

if TYPE_CHECKING:
    from botproxy.config.schema import Config

logger = logging.getLogger(__name__)

MOST_WORKERS = 64
"""As many as `workers` may ask for."""


@dataclass(slots=True, eq=False)
class Team:
    """One of them; see the module."""

    config: Config
    account: Account | None
    """Whom the workers become."""
    context: ssl.SSLContext
    """Of the listeners; its ticket keys are the team's."""
    arrangement: Arrangement
    verifications: Mapping[str, ssl.SSLContext]
    """How bots behind https:// are verified."""
    census: Census
    limiter: SharedLimiter
    begun: float = field(default_factory=time.monotonic)
    """Monotonic seconds."""
    keys_made: float = field(default_factory=time.monotonic)
    """When its ticket keys were, by a team before it perhaps."""
    keeper: Child | None = None
    workers: dict[int, Child] = field(default_factory=dict)
    """By slot."""

    @property
    def slots(self) -> range:
        return range(len(self.arrangement.slots))

    @property
    def is_complete(self) -> bool:
        """Whether every slot has a worker that serves."""
        return all(slot in self.workers and self.workers[slot].ready for slot in self.slots)

    def renewed(self) -> Team:
        """The same team with new ticket keys, and workers that are still to come."""
        return Team(
            self.config,
            self.account,
            listener_context(self.config.tls),
            self.arrangement,
            self.verifications,
            self.census,
            self.limiter,
            keeper=self.keeper,
        )


def assemble(config: Config, listening: Listening, seats: Seats, before: Team | None = None) -> Team:
    """A team for `config`, none of whose processes is started yet, with the ticket keys of the one `before`.

    Raises ConfigError, BindError; then nothing new is open.
    """
    verified = verifications(config.upstreams)
    account = privileges.worker_account(config.user)
    arrangement = listening.arrange(config.listen, config.plain_listen, slots_of(config))
    census = Census(seats, _connections(config), config.limits.connections_per_address)
    limiter = SharedLimiter(config.limits.rate, [route.rate for route in config.routes])
    if before is not None and before.config.tls.min_version == config.tls.min_version:
        context, made = before.context, before.keys_made
    else:
        context, made = listener_context(config.tls), time.monotonic()
    return Team(config, account, context, arrangement, verified, census, limiter, keys_made=made)


def check_change(old: Config, new: Config) -> None:
    """Whether a running botproxy can change from `old` to `new`; raises ConfigError when it cannot."""
    says = "expected the value that it was started with, found another one"
    problems = [
        Problem("", key, says, "restart botproxy")
        for key in ("state_dir", "admin", "user")
        if getattr(old, key) != getattr(new, key)
    ]
    if problems:
        raise ConfigError(problems)


def slots_of(config: Config) -> int:
    """How many workers there shall be: by default one for each processor that we may use."""
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS) if config.workers == "auto" else config.workers


# Private


def _connections(config: Config) -> int:
    allowed = privileges.connections_within(privileges.raise_descriptor_limit(), len(config.upstreams))
    total = min(config.limits.connections, allowed)
    if total < config.limits.connections:
        logger.warning(
            "limits.connections lowered to fit the limit on open files",
            extra={"data": {"from": config.limits.connections, "to": total}},
        )
    return total
