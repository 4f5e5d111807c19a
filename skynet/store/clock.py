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
        offset = self._offset
        if exact or offset is None or time.monotonic() >= self._due:
            try:
                offset = self._compare()
            except redis.RedisError:
                if exact or offset is None:
                    raise
                self._due = time.monotonic() + RETRY_S
        return time.monotonic() + offset

    def _compare(self) -> float:
        before = time.monotonic()
        seconds, microseconds = self.client.time()
        after = time.monotonic()
        offset = seconds + microseconds * 1e-6 - (before + after) / 2
        self._offset, self._due = offset, after + REFRESH_S
        return offset
