"""The state of a cluster, from Redis: plan, members, queues, requests, events, and why requests
wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import redis

from skynet.planning.plan import Plan, protocol_of
from skynet.redis_url import hide_password
from skynet.settings import settings
from skynet.store.access import CONNECTIONS, MEMORY
from skynet.store.connection import ping, reachable, server_info
from skynet.store.engine_state import read_engine_state
from skynet.store.events import Events
from skynet.store.members import LOADING, READY, Member, Members
from skynet.store.plans import Plans, plan_of
from skynet.store.requests import Requests
from skynet.store.targets import Target, Targets
from skynet.store.transient import PROPAGATED, keeps_transient
from skynet.wire import keys
from skynet.wire.keys import Address
from skynet.wire.protocol import PROTOCOL

MAX_NAMED = 4  # places in one phrase, and problems


def cluster_status(client: redis.Redis, url: str, events: int = 12) -> dict[str, Any]:
    """The output of `skynet status --json`, with up to `events` of the newest events.

    Raises:
        ClusterUnreachable: Redis does not answer.
    """
    ping(url)
    with reachable(url):
        return _status(client, url, events)


def _status(client: redis.Redis, url: str, events: int) -> dict[str, Any]:
    text, _ = Plans(client).texts()
    plan = plan_of(text)
    problem = "" if text is None or plan is not None else _of_another_protocol(text)
    members = Members(client, settings().lease_s).all()
    target = Targets(client).current()
    queues = [*needed_places(plan, target), keys.ORCHESTRATOR_QUEUE]
    with client.pipeline(transaction=False) as pipe:
        for queue in queues:
            pipe.llen(keys.queue_key(queue))
        lengths = pipe.execute()
    engine_state = read_engine_state(client)
    memory = server_info(client, "memory")
    present = {m.address for m in members if m.state == READY and plan and m.epoch == plan.epoch}
    if any(member.state == "leading" for member in members):
        present.add(keys.ORCHESTRATOR_QUEUE)
    seconds, micros = client.time()
    now = seconds + micros / 1e6
    state = {
        "redis": hide_password(url),
        "prefix": settings().prefix,
        "redis_memory_bytes": memory.get("used_memory"),
        "unavailable": _unavailable(memory, members, engine_state, keeps_transient(client)),
        "target": asdict(target) if target else None,
        "plan": plan.summary() if plan else None,
        "plan_problem": problem,
        "missing": [p for p in queues if p not in present] if target and not problem else [],
        "incompatible": _incompatible(members),
        "links": _links(plan, members),
        "exchange_dtypes": _exchange_dtypes(plan, members),
        "members": [
            {**asdict(member), "silent_s": round(max(0.0, now - member.renewed), 2)}
            for member in members
        ],
        "queues": dict(zip(queues, lengths, strict=True)),
        "requests": {"open": Requests(client, settings().result_expires_s).num_open()},
        "engine": engine_state,
        "events": [asdict(event) for event in Events(client).latest(events)],
    }
    return {**state, "waiting_for": obstacles(state)}


def _links(plan: Plan | None, members: list[Member]) -> list[str]:
    """How the shards of each stage exchange partials, with the slowest round trip of each kind."""
    phrases = []
    for stage in range(len(plan.stages) if plan else 0):
        trips: dict[str, float] = {}
        for member in members:
            if plan and member.epoch == plan.epoch and member.address.startswith(f"stage{stage}."):
                for link in member.links:
                    trips[link.kind] = max(link.round_trip_s, trips.get(link.kind, 0.0))
        shown = (f"{kind[:10]}, {seconds * 1e6:.0f} µs" for kind, seconds in sorted(trips.items()))
        if trips:
            phrases.append(f"stage {stage}: {' and '.join(shown)}")
    return phrases


def _exchange_dtypes(plan: Plan | None, members: list[Member]) -> list[str]:
    """SKYNET_EXCHANGE_DTYPE of the shards that exchange partials."""
    placed = plan.placed() if plan is not None and plan.num_shards > 1 else {}
    return sorted({member.exchange_dtype for member in members if member.id in placed})


def _unavailable(
    memory: dict[str, Any],
    members: list[Member],
    engine: dict[str, Any] | None,
    transient: bool,
) -> list[str]:
    """What does not work because Redis refuses a command that SkyNet can do without."""
    listed = (engine or {}).get("sees_connections", True)
    identified = all(member.connection for member in members)
    reasons = {
        MEMORY: bool(memory),
        CONNECTIONS: listed and identified,
        PROPAGATED: transient,
    }
    return [reason for reason, works in reasons.items() if not works]


def obstacles(state: Mapping[str, Any]) -> list[str]:
    """Why no request can run now, a phrase for each reason; none if requests run.

    state: of `cluster_status`.
    """
    if state["target"] is None:
        return ["no model (stage one with `skynet split MODEL --stages S --shards N`)"]
    engine = state["engine"] or {}
    reasons = []
    if keys.ORCHESTRATOR_QUEUE in state["missing"]:
        reasons.append("no orchestrator (start one with `celery -A skynet worker -Q orchestrator`)")
    elif engine.get("state", "").startswith("ready"):
        return []
    reasons += _empty_places(state)
    if not reasons and engine:  # the model is not staged, or no plan fits the members
        reasons.append(engine.get("reason") or engine["state"])
    return reasons


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


def _of_another_protocol(text: bytes) -> str:
    return (
        f"the plan in force is of protocol {protocol_of(text)}, this command speaks {PROTOCOL}: "
        "use `skynet` of the cluster's version"
    )


def _incompatible(members: list[Member]) -> list[str]:
    """The members that the leading orchestrator gives no place because of their version."""
    leader = next((member for member in members if member.state == "leading"), None)
    return [
        f"{member.node} speaks protocol {member.protocol}, the leading orchestrator "
        f"{leader.protocol}: it has no place; upgrade the older of them"
        for member in members
        if leader is not None
        and member.protocol != leader.protocol
        and member.address != keys.ORCHESTRATOR_QUEUE
    ]
