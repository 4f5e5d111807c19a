"""What happened, the newest last, and never too much of it."""

from __future__ import annotations

import redis

from skynet.store.events import MAX_EVENTS, Events
from skynet.wire import keys


def test_the_latest_come_oldest_first(client: redis.Redis) -> None:
    # Given an empty log, then three events
    events = Events(client)
    assert events.latest(5) == []
    events.add("joined", "stage0.shard0 (a)")
    events.add("ready", "plan 1: all shards", 1.23456)
    events.add("lost", "stage0.shard0 (a)")
    # When the latest two are read
    latest = events.latest(2)
    # Then they come in order, with kind and text, by Redis's clock
    assert [(event.kind, event.text) for event in latest] == [
        ("ready", "plan 1: all shards"),
        ("lost", "stage0.shard0 (a)"),
    ]
    assert (latest[0].duration_s, latest[1].duration_s) == (1.235, 0.0)
    seconds, _ = client.time()  # type: ignore[misc]
    assert 0 <= seconds + 1 - latest[0].at < 60


def test_the_log_does_not_grow_for_ever(client: redis.Redis) -> None:
    # Given three times as many events as are kept
    events = Events(client)
    for number in range(3 * MAX_EVENTS):
        events.add("joined", str(number))
    # Then about so many are left, with the last
    assert MAX_EVENTS <= client.xlen(keys.events_key()) < 2 * MAX_EVENTS
    assert events.latest(1)[0].text == str(3 * MAX_EVENTS - 1)
