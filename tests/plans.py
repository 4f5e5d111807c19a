"""Plans for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from skynet.architecture.architecture import Architecture
from skynet.planning.placement import Layout
from skynet.planning.plan import Plan
from skynet.planning.split import PlanOptions, make_plan


def plan_for(
    arch: Architecture,
    stages: int = 1,
    shards: int = 1,
    *,
    epoch: int = 1,
    weights: Sequence[Sequence[float]] | None = None,
    by_memory: bool = False,
    **options: Any,
) -> Plan:
    """`arch` cut into stages and shards; `options` are fields of `PlanOptions`."""
    named = PlanOptions(**{"model": "digest", "name": "tiny", **options})
    return make_plan(
        arch,
        named,
        stages=stages,
        shards=shards,
        epoch=epoch,
        weights=weights,
        by_memory=by_memory,
    )


def layout_of(arch: Architecture) -> Layout:
    """Plans of `arch` as a planner asks for them."""

    def layout(
        stages: int,
        shards: int,
        weights: Sequence[Sequence[float]] | None = None,
        by_memory: bool = False,
    ) -> Plan:
        return plan_for(arch, stages, shards, weights=weights, by_memory=by_memory)

    return layout
