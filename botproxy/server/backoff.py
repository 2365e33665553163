"""When something that ended is started again: soon at first, later each time, anew once it was stable."""

from __future__ import annotations

from collections import defaultdict

FIRST = 0.1
LONGEST = 30.0
STABLE_AFTER = 10.0
"""Seconds that something must live for its next end to count as the first. All times are monotonic."""


class Backoff:
    """Plans by key; a key is a worker slot or another name for what is to be started."""

    def __init__(self) -> None:
        self.plans: dict[int, float] = {}
        """When what is to be started again."""
        self._delays: defaultdict[int, float] = defaultdict(lambda: FIRST)
        self._failures: defaultdict[int, int] = defaultdict(int)

    def plan(self, key: int, now: float, lived: float) -> float:
        """Seconds until it is started again, which is planned; `lived`: seconds that it was there."""
        if lived >= STABLE_AFTER:
            self.forget(key)
        delay = self._delays[key]
        self._delays[key] = min(LONGEST, delay * 2)
        self._failures[key] += 1
        self.plans[key] = now + delay
        return delay

    def due(self, now: float) -> list[int]:
        """What is to be started now; the plans for it are done."""
        due = [key for key, at in self.plans.items() if now >= at]
        for key in due:
            del self.plans[key]
        return due

    def failures(self, key: int) -> int:
        """Ends in a row without being stable."""
        return self._failures[key]

    def forget(self, key: int) -> None:
        """Nothing is planned for `key`, and its next end is its first."""
        for known in (self.plans, self._delays, self._failures):
            known.pop(key, None)
