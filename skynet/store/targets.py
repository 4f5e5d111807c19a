"""The target: the model and the shape that the user asked for. Written by `skynet split`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import cast

import redis

from skynet.errors import NoModel
from skynet.planning.plan import Plan
from skynet.wire import keys


@dataclass(frozen=True)
class Target:
    """A model and the shape to run it in; the leading orchestrator makes plans from it.

    stages, shards: the shape; None: chosen by the number of members.
    fixed: wait for members rather than fall back to a smaller shape.
    revision: set by `Targets.ask`.
    """

    model: str  # content digest of the staged checkpoint
    name: str
    dtype: str
    weight_dtype: str
    chord_span: str
    num_slots: int
    slot_tokens: int
    stages: int | None = None
    shards: int | None = None
    fixed: bool = False
    revision: int = 0

    @classmethod
    def of(cls, plan: Plan, fixed: bool = False, *, any_shape: bool = False) -> Target:
        """The target that asks for this plan; `any_shape` leaves its shape open."""
        return cls(
            plan.model,
            plan.name,
            plan.dtype,
            plan.weight_dtype,
            plan.chord_span,
            plan.num_slots,
            plan.slot_tokens,
            None if any_shape else len(plan.stages),
            None if any_shape else plan.num_shards,
            fixed,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Target:
        return cls(**json.loads(text))


class Targets:
    """The target of one Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def ask(self, target: Target) -> Target:
        """Ask for this target from now on; returns it with its revision."""
        revision: int = self.client.incr(keys.REVISION_KEY)
        numbered = replace(target, revision=revision)
        self.client.set(keys.TARGET_KEY, numbered.to_json())
        return numbered

    def restore(self, target: Target) -> None:
        """Ask again for a target that Redis has forgotten, unless another was asked for."""
        self.client.set(keys.TARGET_KEY, target.to_json(), nx=True)

    def current(self) -> Target | None:
        """The target asked for last, or None."""
        text = self.client.get(keys.TARGET_KEY)
        return None if text is None else Target.from_json(cast(bytes, text))

    def require(self) -> Target:
        """The target asked for last.

        Raises:
            NoModel: no target was asked for.
        """
        target = self.current()
        if target is None:
            raise NoModel(
                "no model has been split onto this cluster: run "
                "`skynet split MODEL --stages 2 --shards 2`"
            )
        return target
