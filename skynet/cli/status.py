"""The state of a cluster, from Redis: plan, members, queues, requests, events."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

import redis

from skynet.planning.plan import Plan
from skynet.settings import hide_password, settings
from skynet.store.connection import ping, server_info
from skynet.store.events import Events
from skynet.store.members import READY, Members
from skynet.store.plans import Plans
from skynet.store.requests import Requests
from skynet.store.targets import Target, Targets
from skynet.wire import keys
from skynet.wire.keys import Address
from skynet.wire.typed_json import parse_object


def cluster_status(client: redis.Redis, url: str, events: int = 12) -> dict[str, Any]:
    """The output of `skynet status --json`, with up to `events` of the newest events.

    Raises:
        ClusterUnreachable: Redis does not answer.
    """
    ping(url)
    plan = Plans(client).current()
    members = Members(client, settings().lease_s).all()
    target = Targets(client).current()
    places = _places(plan, target)
    queues = [*places, keys.ORCHESTRATOR_QUEUE]
    with client.pipeline(transaction=False) as pipe:
        for queue in queues:
            pipe.llen(queue)
        lengths = pipe.execute()
    engine = cast("bytes | None", client.get(keys.ENGINE_KEY))
    present = {m.address for m in members if m.state == READY and plan and m.epoch == plan.epoch}
    if any(member.state == "leading" for member in members):
        present.add(keys.ORCHESTRATOR_QUEUE)
    seconds, micros = client.time()
    now = seconds + micros / 1e6
    return {
        "redis": hide_password(url),
        "redis_memory_bytes": server_info(client, "memory").get("used_memory", 0),
        "target": asdict(target) if target else None,
        "plan": plan.summary() if plan else None,
        "missing": [place for place in queues if place not in present] if target else [],
        "members": [
            {**asdict(member), "silent_s": round(max(0.0, now - member.renewed), 2)}
            for member in members
        ],
        "queues": dict(zip(queues, lengths, strict=True)),
        "requests": {"open": Requests(client, settings().result_expires_s).num_open()},
        "engine": parse_object(engine, keys.ENGINE_KEY) if engine else None,
        "events": [asdict(event) for event in Events(client).latest(events)],
    }


def _places(plan: Plan | None, target: Target | None) -> list[str]:
    """The addresses that need a worker: of the current plan, or of the target's shape."""
    if plan is not None and (target is None or plan.revision == target.revision):
        return [str(Address(*address)) for address in plan.addresses()]
    if target is None or target.stages is None or target.shards is None:
        return []
    return [
        str(Address(stage, shard))
        for stage in range(target.stages)
        for shard in range(target.shards)
    ]
