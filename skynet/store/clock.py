"""The clock of Redis: one time for all machines; their clocks may differ."""

from __future__ import annotations

import time

import redis

REFRESH_S = 30.0  # lifetime of a comparison of the clocks
RETRY_S = 1.0


class RedisClock:
    """Redis's time, read at most every REFRESH_S and counted on by this machine in between."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._offset: float | None = None  # Redis's time less time.monotonic()
        self._due = 0.0

    def now(self, *, exact: bool = False) -> float:
        """Redis's time, unix seconds.

        exact: ask Redis now. Otherwise the last comparison holds while Redis is unreachable.

        Raises:
            redis.RedisError: Redis is unreachable, and `exact` or no comparison was made before.
        """
        if not exact and (known := self.known()) is not None:
            return known
        before = time.monotonic()
        try:
            return self.compare(self.client.time(), before)
        except redis.RedisError:
            if exact or self._offset is None:
                raise
            self._due = time.monotonic() + RETRY_S
            return before + self._offset

    def known(self) -> float | None:
        """Redis's time by the last comparison; None if another is due."""
        if self._offset is None or time.monotonic() >= self._due:
            return None
        return time.monotonic() + self._offset

    def compare(self, reply: tuple[int, int], before: float) -> float:
        """Redis's time, from its reply to a TIME that was sent at `before`."""
        seconds, microseconds = reply
        after = time.monotonic()
        self._offset = seconds + microseconds * 1e-6 - (before + after) / 2
        self._due = after + REFRESH_S
        return after + self._offset
