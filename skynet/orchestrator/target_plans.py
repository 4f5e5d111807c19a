"""Plans for the model and shape that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from skynet.architecture.architecture import Architecture
from skynet.planning.auto_dtype import all_gpus
from skynet.planning.cost import Candidate
from skynet.planning.placement import Planner, Wish
from skynet.planning.plan import Plan, number_dtype
from skynet.planning.split import PlanOptions, make_plan
from skynet.store.targets import Target


@dataclass(frozen=True)
class TargetPlans:
    """Lays out plans for one target.

    on_gpus: in the target's dtype for GPUs.
    """

    arch: Architecture
    target: Target
    on_gpus: bool = False

    @property
    def dtype(self) -> str:
        """What the plans compute in."""
        return (self.on_gpus and self.target.gpu_dtype) or self.target.dtype

    def for_members(self, current: Plan | None, members: Sequence[Candidate]) -> TargetPlans:
        """In the dtype for these members.

        The target's first plan decides: running requests keep its dtype, whoever joins or leaves.
        """
        target = self.target
        if current is not None and current.revision == target.revision:
            on_gpus = target.gpu_dtype is not None and current.dtype == target.gpu_dtype
        else:
            on_gpus = target.gpu_dtype is not None and all_gpus(members)
        return self if on_gpus == self.on_gpus else replace(self, on_gpus=on_gpus)

    def layout(
        self,
        stages: int,
        shards: int,
        weights: Sequence[Sequence[float]] | None = None,
        by_memory: bool = False,
    ) -> Plan:
        """The target in this shape, without workers."""
        target = self.target
        options = PlanOptions(
            target.model,
            target.name,
            self.dtype,
            target.weight_dtype,
            target.chord_span,
            target.num_slots,
            target.slot_tokens,
            target.kv_dtype,
            target.experts,
        )
        plan = make_plan(
            self.arch,
            options,
            stages=stages,
            shards=shards,
            epoch=0,
            weights=weights,
            by_memory=by_memory,
        )
        return replace(plan, revision=target.revision)

    def planner(self) -> Planner:
        target = self.target
        shape = None
        if target.stages is not None and target.shards is not None:
            shape = (target.stages, target.shards)
        return Planner(self.arch, self.layout, Wish(shape, target.fixed, target.revision))

    def can_run(self, plan: Plan) -> bool:
        """Whether the engine can run a plan, even of another shape than the target's."""
        target, same = self.target, ("model", "num_slots", "slot_tokens")
        numbers = number_dtype(self.dtype)
        return (
            plan.dtype == self.dtype
            and plan.weight_dtype == (target.weight_dtype or numbers)
            and (plan.kv_dtype or numbers) == (target.kv_dtype or numbers)
            and all(getattr(plan, name) == getattr(target, name) for name in same)
        )
