"""When a request was submitted, started and answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from skynet.request.record import Record


@dataclass
class Timings:
    """Times of one request in seconds by `clock`, the clock of its record; 0: not yet."""

    clock: Callable[[], float]
    created: float
    started_at: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    gap_s: float = 0.0  # between the last two tokens

    @classmethod
    def of(cls, record: Record, clock: Callable[[], float]) -> Timings:
        """With the times that an earlier orchestrator wrote."""
        return cls(
            clock, record.created, record.started_at, record.first_token_at, record.last_token_at
        )

    def note_token(self) -> None:
        now = self.clock()
        self.first_token_at = self.first_token_at or now
        self.gap_s = now - self.last_token_at if self.last_token_at else 0.0
        self.last_token_at = now

    def report(self, num_tokens: int) -> dict[str, float]:
        """Seconds since submission, and tokens per second after the first token."""
        now = self.clock()
        decode_s = self.last_token_at - self.first_token_at
        return {
            "queued_s": round((self.started_at or now) - self.created, 6),
            "first_token_s": round((self.first_token_at or now) - self.created, 6),
            "decode_tokens_per_s": round((num_tokens - 1) / decode_s, 3)
            if decode_s > 0 and num_tokens > 1
            else 0.0,
            "total_s": round(now - self.created, 6),
        }
