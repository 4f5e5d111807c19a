"""The snapshot of a cluster, from what was read of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skynet.gateway.cluster.health import health, unreachable
from skynet.gateway.cluster.places import orchestrators_of, others_of, stages_of
from skynet.gateway.cluster.redis_state import warnings_of
from skynet.gateway.cluster.timings import SERIES, history_of, timings_of
from skynet.store.metrics import Metrics

SHOWN_PLAN = ("epoch", "model", "dtype", "weight_dtype", "quantisation", "kv_dtype", "chord_span")


@dataclass(frozen=True)
class Readings:
    """What was read of one cluster.

    now: Redis's clock. state: of `cluster_status`. redis: of `read_redis`. requests: of
    `RequestList`. models, checks: of `StagedModels`. shapes: of `Shapes`. metrics: of
    the leading orchestrator.
    """

    name: str
    now: float
    lease_s: float
    state: Mapping[str, Any]
    redis: Mapping[str, Any]
    requests: Mapping[str, Any]
    models: Mapping[str, Any]
    checks: Mapping[str, Any]
    shapes: Mapping[str, Any] | None
    metrics: Metrics | None


def snapshot_of(read: Readings) -> dict[str, Any]:
    """JSON without NaN. A part that could not be read is None."""
    state = read.state
    plan, engine = state["plan"], state["engine"] or {}
    warnings = [*warnings_of(read.redis), *state["unavailable"], *state["incompatible"]]
    if state["plan_problem"]:
        warnings.append(state["plan_problem"])
    return {
        "cluster": read.name,
        "now": round(read.now, 2),
        "health": health(state, warnings),
        "target": state["target"],
        "plan": {name: plan[name] for name in SHOWN_PLAN} if plan else None,
        "engine": {name: value for name, value in engine.items() if name != "computing"},
        "stages": stages_of(state, read.lease_s),
        "orchestrators": orchestrators_of(state, read.lease_s),
        "others": others_of(state, read.lease_s),
        "requests": {"open": state["requests"]["open"], "listed": dict(read.requests)},
        "events": state["events"],
        "redis": {"url": state["redis"], "prefix": state["prefix"], **read.redis},
        "models": {
            digest: {**model, "check": read.checks.get(digest)}
            for digest, model in read.models.items()
        },
        "shapes": read.shapes,
        "timings": timings_of(read.metrics),
        "history": {"series": list(SERIES), "points": history_of(read.metrics)},
    }


def unreadable(name: str, now: float, reason: str) -> dict[str, Any]:
    """The snapshot of a cluster that does not answer. now: this machine's clock."""
    return {"cluster": name, "now": round(now, 2), "health": unreachable(reason)}
