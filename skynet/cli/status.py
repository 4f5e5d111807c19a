"""The state of a cluster, from Redis: plan, members, queues, requests, events, and why requests
wait.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import redis

from skynet.planning.plan import Plan
from skynet.settings import hide_password, settings
from skynet.store.connection import ping, server_info
from skynet.store.events import Events
from skynet.store.members import LOADING, READY, Members
from skynet.store.plans import Plans
from skynet.store.requests import Requests
from skynet.store.targets import Target, Targets
from skynet.wire import keys
from skynet.wire.keys import Address

MAX_NAMED = 4  # places in one phrase, and problems


def cluster_status(client: redis.Redis, url: str, events: int = 12) -> dict[str, Any]:
    """The output of `skynet status --json`, with up to `events` of the newest events.

    Raises:
        ClusterUnreachable: Redis does not answer.
    """
    ping(url)
    plan = Plans(client).current()
    members = Members(client, settings().lease_s).all()
    target = Targets(client).current()
    queues = [*needed_places(plan, target), keys.ORCHESTRATOR_QUEUE]
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
    state = {
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
        "engine": json.loads(engine) if engine else None,
        "events": [asdict(event) for event in Events(client).latest(events)],
    }
    return {**state, "waiting_for": obstacles(state)}


def obstacles(state: Mapping[str, Any]) -> list[str]:
    """Why no request can run now, a phrase for each reason; none if requests run.

    state: of `cluster_status`.
    """
    if state["target"] is None:
        return ["no model (stage one with `skynet split MODEL --stages S --shards N`)"]
    engine = state["engine"] or {}
    found = []
    if keys.ORCHESTRATOR_QUEUE in state["missing"]:
        found.append("no orchestrator (start one with `celery -A skynet worker -Q orchestrator`)")
    elif engine.get("state", "").startswith("ready"):
        return []
    found += _empty_places(state)
    if not found and engine:  # the model is not staged, or no plan fits the members
        found.append(engine.get("reason") or engine["state"])
    return found


def _empty_places(state: Mapping[str, Any]) -> list[str]:
    """Phrases about the places of shards that are not ready."""
    holders = {member["address"] or member["pinned"]: member for member in state["members"]}
    free = [m for m in state["members"] if not (m["address"] or m["pinned"] or m["leaving"])]
    places = [place for place in state["missing"] if place != keys.ORCHESTRATOR_QUEUE]
    vacant = [place for place in places if place not in holders]
    vacant = vacant[len(free) :]  # workers that take any place get the first ones
    loading = [place for place in places if holders.get(place, {}).get("state") == LOADING]
    problems = [
        f"{place}: {holders[place]['problem']}"
        for place in places
        if place in holders and holders[place]["problem"]
    ]
    return [
        *_joined(vacant, "has no worker", "have no worker"),
        *_joined(loading, "is loading its weights", "are loading their weights"),
        *problems[:MAX_NAMED],
    ]


def _joined(places: list[str], one: str, several: str) -> list[str]:
    """A phrase about places; none without any."""
    if not places:
        return []
    more = f" and {len(places) - MAX_NAMED} more" if len(places) > MAX_NAMED else ""
    return [f"{', '.join(places[:MAX_NAMED])}{more} {one if len(places) == 1 else several}"]


def needed_places(plan: Plan | None, target: Target | None) -> list[str]:
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
