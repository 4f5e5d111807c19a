"""The target: the model and the shape that the user asked for. Written by `skynet split`."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, cast

import redis
from pydantic import ConfigDict

from skynet.errors import NoModel, WireError
from skynet.planning.plan import (
    ChordSpan,
    ComputeDType,
    DType,
    ExpertCut,
    KVDType,
    Plan,
    Quantisation,
    WeightDType,
)
from skynet.store.leader import GUARD, fenced
from skynet.wire import keys
from skynet.wire.typed_json import NO_OTHER_FIELDS, Count, Size, read_json

logger = logging.getLogger(__name__)

# KEYS: leader, target. ARGV: fence, the value it has ('': none), the value it gets.
KEEP = (
    GUARD
    + """
if (redis.call('GET', KEYS[2]) or '') == ARGV[2] then redis.call('SET', KEYS[2], ARGV[3]) end
"""
)


@dataclass(frozen=True)
class Target:
    """A model and the shape to run it in; the leading orchestrator makes plans from it.

    stages, shards: the shape; None: chosen by the number of members.
    fixed: wait for members rather than fall back to a smaller shape.
    revision: set by `Targets.ask`.
    gpu_dtype: what is computed in if all members are GPUs; None: dtype.
    """

    __pydantic_config__: ClassVar[ConfigDict] = NO_OTHER_FIELDS

    model: str  # content digest of the staged checkpoint
    name: str
    dtype: ComputeDType
    chord_span: ChordSpan
    num_slots: Size
    slot_tokens: Size
    stages: Size | None = None
    shards: Size | None = None
    fixed: bool = False
    revision: Count = 0
    weight_dtype: WeightDType | None = None  # None: as dtype
    quantisation: Quantisation = ""
    kv_dtype: KVDType | None = None  # None: as dtype
    gpu_dtype: DType | None = None
    experts: ExpertCut = "auto"

    @classmethod
    def of(
        cls,
        plan: Plan,
        fixed: bool = False,
        *,
        any_shape: bool = False,
        gpu_dtype: str | None = None,
        experts: str = "auto",
    ) -> Target:
        """The target that asks for this plan; `any_shape` leaves its shape open."""
        return cls(
            plan.model,
            plan.name,
            plan.dtype,
            plan.chord_span,
            plan.num_slots,
            plan.slot_tokens,
            None if any_shape else len(plan.stages),
            None if any_shape else plan.num_shards,
            fixed,
            weight_dtype=plan.weight_dtype,
            quantisation=plan.quantisation,
            kv_dtype=plan.kv_dtype,
            gpu_dtype=gpu_dtype,
            experts=experts,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Target:
        """The target that `to_json` wrote, in this version or an earlier one.

        Raises:
            IncompatibleVersion: it has fields that this version does not know.
            WireError: anything else.
        """
        unknown = (
            " in the target: a newer version of SkyNet split the model; upgrade this one, or split "
            "the model again with it"
        )
        return read_json(cls, text, "the target", unknown=unknown)


class Targets:
    """The target of one Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._keep = client.register_script(KEEP)

    def ask(self, target: Target) -> Target:
        """Ask for this target from now on; returns it with its revision."""
        revision: int = self.client.incr(keys.revision_key())
        numbered = replace(target, revision=revision)
        self.client.set(keys.target_key(), numbered.to_json())
        return numbered

    def restore(self, target: Target) -> None:
        """Ask again for a target that Redis has forgotten, unless another was asked for."""
        self.client.set(keys.target_key(), target.to_json(), nx=True)

    def keep(self, target: Target, fence: str) -> None:
        """Write the target in force again if its key was deleted, or holds something else.

        Raises:
            Fenced: the caller is not the leader any more.
        """
        text = cast("bytes | None", self.client.get(keys.target_key())) or b""
        try:
            Target.from_json(text)
        except WireError:
            with fenced():
                redis_keys = [keys.leader_key(), keys.target_key()]
                self._keep(keys=redis_keys, args=[fence, text, target.to_json()])
            logger.error("another client has changed the target in Redis: written again")

    def current(self) -> Target | None:
        """The target asked for last, or None.

        Raises:
            IncompatibleVersion: a newer version asked for it.
            WireError: the key holds something else.
        """
        text = self.client.get(keys.target_key())
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
