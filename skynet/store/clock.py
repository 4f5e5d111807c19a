"""The clock of Redis: one time for all machines, whose own clocks need not agree."""

from __future__ import annotations

import time

import redis

REFRESH_S = 30.0  # how long one comparison of the clocks is believed
RETRY_S = 1.0


class RedisClock:
    """Redis's time, asked for twice a minute at most and counted on by this machine in between."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._offset: float | None = None  # Redis's time less time.monotonic()
        self._due = 0.0

    def now(self, *, exact: bool = False) -> float:
        """Seconds since 1970 as Redis counts them.

        exact: ask Redis now. Without it, while Redis is away, the last comparison is believed on.

        Raises:
            redis.RedisError: Redis is away, and was never asked or an exact time is wanted.
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
