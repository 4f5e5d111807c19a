"""Tokens per second of the recent past."""

from __future__ import annotations

from collections import deque

WINDOW_S = 5.0


class TokenRate:
    """The rate over the last `WINDOW_S`, from a running count that is measured now and then."""

    def __init__(self) -> None:
        self._measured: deque[tuple[float, int]] = deque()

    def measure(self, now: float, count: int) -> float:
        """Tokens per second since the measurement that is at least `WINDOW_S` old, or the first.

        count: tokens so far.
        """
        self._measured.append((now, count))
        while len(self._measured) > 2 and self._measured[1][0] <= now - WINDOW_S:
            self._measured.popleft()
        since, before = self._measured[0]
        return (count - before) / (now - since) if now > since else 0.0
