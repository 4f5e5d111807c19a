"""States of clusters, as `cluster_status` gives them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from skynet.gateway.cluster.snapshot import Readings
from skynet.store.members import LOADING, READY, Member

LEASE_S = 3.0
REDIS = {
    "memory_bytes": 10**9,
    "limit_bytes": None,
    "policy": "noeviction",
    "append_only": True,
    "append_only_status": "ok",
    "round_trip_s": 0.0002,
    "version": "9.1.2",
}


def member(name: str, address: str, state: str = READY, **fields: Any) -> dict[str, Any]:
    epoch = fields.pop("epoch", 4)
    made = Member(name, f"{name}@here", address, f"host-{name}", 77, state, epoch=epoch, **fields)
    return {**asdict(made), "silent_s": 0.1}


def part(stage: int, shard: int) -> dict[str, Any]:
    heads = [shard * 2, shard * 2 + 2]
    return {"address": f"stage{stage}.shard{shard}", "heads": heads, "columns": [0, 8]}


PLAN = {
    "epoch": 4,
    "model": "tiny",
    "dtype": "float32",
    "weight_dtype": "float32",
    "quantisation": "",
    "kv_dtype": "float32",
    "chord_span": "auto",
    "stages": [
        {"stage": stage, "layers": [stage, stage + 1], "shards": [part(stage, 0), part(stage, 1)]}
        for stage in range(2)
    ],
}
LEADER = member("o", "orchestrator", "leading")


def state(*members: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A cluster of 2 stages x 2 shards with these members and a leading orchestrator."""
    return {
        "redis": "redis://:***@here:6379/0",
        "prefix": "skynet:",
        "redis_memory_bytes": 10**9,
        "unavailable": [],
        "target": {"name": "tiny", "model": "d", "stages": 2, "shards": 2},
        "plan": PLAN,
        "plan_problem": "",
        "missing": [],
        "incompatible": [],
        "links": [],
        "members": [LEADER, *members],
        "queues": {},
        "requests": {"open": 0},
        "engine": {"state": "ready", "running": 0, "waiting": 0, "tokens_per_s": 0.0},
        "events": [],
        "waiting_for": [],
        **fields,
    }


def full_grid() -> list[dict[str, Any]]:
    return [
        member("a", "stage0.shard0"),
        member("b", "stage0.shard1"),
        member("c", "stage1.shard0", LOADING, weight_bytes=100, loaded_bytes=63),
        member("d", "stage1.shard1", epoch=3),  # ready, but for the plan before
    ]


def readings(state: dict[str, Any], **fields: Any) -> Readings:
    given: dict[str, Any] = {
        "name": "main",
        "now": 1e9,
        "lease_s": LEASE_S,
        "state": state,
        "redis": REDIS,
        "requests": {},
        "models": {},
        "checks": {},
        "shapes": None,
        "metrics": None,
    }
    return Readings(**{**given, **fields})
