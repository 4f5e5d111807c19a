"""The cluster's event log: joins, losses, plans, replays; the newest MAX_EVENTS or a few more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import redis

from skynet.wire import keys

MAX_EVENTS = 500


@dataclass(frozen=True)
class Event:
    """One event.

    at: Redis's clock, unix seconds. duration_s: 0: no duration.
    """

    at: float
    # joined, lost, leaving, left, plan, prepare, ready, replay, leader, redis, wait, model, admin
    kind: str
    text: str
    duration_s: float = 0.0


class Events:
    """The event log of one Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def add(self, kind: str, text: str, duration_s: float = 0.0) -> None:
        fields: dict[Any, Any] = {"k": kind, "t": text}
        if duration_s:
            fields["d"] = f"{duration_s:.3f}"
        self.client.xadd(keys.events_key(), fields, maxlen=MAX_EVENTS, approximate=True)

    def latest(self, count: int) -> list[Event]:
        """The newest events, oldest first."""
        entries = cast(list[Any], self.client.xrevrange(keys.events_key(), count=count))
        return [
            Event(
                int(entry.split(b"-")[0]) / 1000,
                fields[b"k"].decode(errors="replace"),
                fields[b"t"].decode(errors="replace"),
                _seconds(fields.get(b"d", b"0")),
            )
            for entry, fields in reversed(entries)
            if b"k" in fields and b"t" in fields
        ]


def _seconds(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:  # another client has written it
        return 0.0
