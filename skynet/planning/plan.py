"""The plan: the layers, heads, columns and vocabulary of each shard. Frozen, pure, JSON.

Knows neither how plans are made (split.py) nor where they are stored (store/).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from skynet.errors import PlanError, WireError
from skynet.planning.ranges import Range, check_tiling
from skynet.wire.protocol import PROTOCOL, UNVERSIONED
from skynet.wire.typed_json import NO_OTHER_FIELDS, Count, Size, parse_object, read_json

SECRET_BYTES = 32

INT8 = "int8"
DType = Annotated[str, Field(pattern="^(float32|bfloat16)$")]
WeightDType = Annotated[str, Field(pattern="^(float32|bfloat16|float16)$")]
ComputeDType = Annotated[str, Field(pattern="^(float32|bfloat16|int8)$")]
# Of quantised weights, for people: each tensor of the model has its own format. "": none are.
Quantisation = Annotated[str, Field(pattern="^(q8|q4|q4\\+q8|)$")]
KVDType = Annotated[str, Field(pattern="^(float32|bfloat16|q8)$")]
Secret = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
ExpertCut = Annotated[str, Field(pattern="^(auto|columns|whole)$")]
ChordSpan = Annotated[str, Field(pattern="^(layer|stage|auto)$")]


def number_dtype(dtype: str) -> str:
    """The dtype of numbers where `dtype` is computed in.

    int8 is of the activations of quantised products alone: all else is float32.
    """
    return "float32" if dtype == INT8 else dtype


@dataclass(frozen=True)
class ShardPlan:
    """One tensor-parallel slice of one stage, in units of the model.

    `vocab` cuts the embedding in the first stage and the head in the last one. `encoder` is the
    slice of an encoder-decoder's encoder, whose sizes may differ. `experts` are those that the
    shard has whole; None: it has its columns of all.
    """

    heads: Range
    kv_heads: Range
    columns: Range
    vocab: Range
    encoder: ShardPlan | None = None
    experts: Range | None = None


@dataclass(frozen=True)
class StagePlan:
    """A contiguous run of layers and the shards that compute it together."""

    layers: Range
    shards: tuple[ShardPlan, ...]


@dataclass(frozen=True)
class Plan:
    """A model cut for a cluster. `epoch` numbers it; messages of another epoch are stale.

    `workers` has the id of the member at each address, in the order of `addresses()`; "" for an
    empty address. A plan that is only a layout has no workers.
    """

    __pydantic_config__: ClassVar[ConfigDict] = NO_OTHER_FIELDS

    epoch: Count
    model: str  # content digest of the staged checkpoint
    name: str  # for people
    dtype: ComputeDType  # of activations and sums; see `number_dtype`
    weight_dtype: WeightDType  # of weights in memory that are numbers; never wider than `dtype`
    chord_span: ChordSpan
    num_slots: Size  # sequences a shard can hold at once
    slot_tokens: Size  # tokens of one slot: prompt and answer together
    stages: tuple[StagePlan, ...]
    workers: tuple[str, ...] = ()
    revision: Count = 0  # of the target that it was made for
    encoder_layers: Count = 0  # of an encoder-decoder; they come first
    protocol: Count = PROTOCOL  # of all its workers
    kv_dtype: KVDType | None = None  # of keys and values; None: as `dtype`
    id: str = ""  # random: tells it from another cluster's plan of the same epoch
    quantisation: Quantisation = ""
    secret: Secret = field(default="", repr=False)  # random: authenticates its shards' links

    @property
    def number_dtype(self) -> str:
        """See `number_dtype`."""
        return number_dtype(self.dtype)

    @property
    def num_layers(self) -> int:
        return self.stages[-1].layers.stop

    @property
    def num_shards(self) -> int:
        """Shards of each stage."""
        return len(self.stages[0].shards)

    def addresses(self) -> Iterator[tuple[int, int]]:
        """(stage, shard) of every worker this plan needs."""
        for stage, stage_plan in enumerate(self.stages):
            for shard in range(len(stage_plan.shards)):
                yield stage, shard

    def stage_of(self, layer: int) -> int:
        """The stage that computes this layer."""
        for index, stage in enumerate(self.stages):
            if layer in stage.layers:
                return index
        raise IndexError(f"layer {layer} is in no stage of {self.num_layers} layers")

    @property
    def shape(self) -> tuple[int, int]:
        """(stages, shards)."""
        return len(self.stages), self.num_shards

    def chords_of(self, start: int, layers_per_chord: int) -> int:
        """The chords of a step that starts at layer `start`; no chord spans two stages."""
        spans = [stage.layers.overlap(Range(start, self.num_layers)) for stage in self.stages]
        return sum(-(-span.size // layers_per_chord) for span in spans)

    def with_epoch(self, epoch: int) -> Plan:
        """The plan under this epoch, with a new id and a new secret."""
        return replace(
            self, epoch=epoch, id=secrets.token_hex(4), secret=secrets.token_hex(SECRET_BYTES)
        )

    def placed(self) -> dict[str, tuple[int, int]]:
        """Member id -> (stage, shard), for members with an address."""
        pairs = zip(self.workers, self.addresses(), strict=False)
        return {worker: address for worker, address in pairs if worker}

    def same_slice(self, address: tuple[int, int], other: Plan, there: tuple[int, int]) -> bool:
        """Whether `address` has exactly the slice that `there` has in the other plan."""
        same = ("model", "dtype", "weight_dtype", "kv_dtype", "num_slots", "slot_tokens")
        stage, other_stage = self.stages[address[0]], other.stages[there[0]]
        return (
            all(getattr(self, name) == getattr(other, name) for name in same)
            and stage.layers == other_stage.layers
            and stage.shards[address[1]] == other_stage.shards[there[1]]
            and self.num_layers == other.num_layers
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            WireError: anything else.
        """
        plan = read_json(cls, text, "the plan")
        try:
            plan._check()
        except PlanError as error:
            raise WireError(f"the plan cannot be read: {error}") from None
        return plan

    def _check(self) -> None:
        """Raise PlanError unless stages tile the layers and shards the heads and columns."""
        if not self.stages or not all(stage.shards for stage in self.stages):
            raise PlanError("a plan has at least one stage, and a stage at least one shard")
        check_tiling([stage.layers for stage in self.stages], self.num_layers, "layers")
        for stage in self.stages:
            if len(stage.shards) != self.num_shards:
                raise PlanError(f"stages of {len(stage.shards)} and of {self.num_shards} shards")
            for name in ("heads", "columns", "vocab"):
                parts = [getattr(shard, name) for shard in stage.shards]
                check_tiling(parts, parts[-1].stop, name)
            experts = [shard.experts for shard in stage.shards if shard.experts is not None]
            if experts:
                check_tiling(experts, experts[-1].stop, "experts")
            if len(experts) not in (0, self.num_shards):
                raise PlanError(f"{len(experts)} of {self.num_shards} shards have whole experts")
        num_addresses = len(self.stages) * self.num_shards
        if len(self.workers) not in (0, num_addresses):
            raise PlanError(f"{len(self.workers)} workers for {num_addresses} addresses")

    def summary(self) -> dict[str, Any]:
        """The plan for people and `--json`: layers per stage, heads per shard."""
        return {
            "epoch": self.epoch,
            "model": self.name,
            "dtype": self.dtype,
            "weight_dtype": self.weight_dtype,
            "quantisation": self.quantisation,
            "kv_dtype": self.kv_dtype or self.number_dtype,
            "chord_span": self.chord_span,
            "stages": [
                {
                    "stage": index,
                    "layers": [stage.layers.start, stage.layers.stop],
                    "shards": [
                        {
                            "address": f"stage{index}.shard{number}",
                            "layers": stage.layers.size,
                            "heads": [shard.heads.start, shard.heads.stop],
                            "kv_heads": [shard.kv_heads.start, shard.kv_heads.stop],
                            "columns": [shard.columns.start, shard.columns.stop],
                            "vocab": [shard.vocab.start, shard.vocab.stop],
                            **_whole_experts(shard),
                        }
                        for number, shard in enumerate(stage.shards)
                    ],
                }
                for index, stage in enumerate(self.stages)
            ],
        }


def _whole_experts(shard: ShardPlan) -> dict[str, list[int]]:
    return {} if shard.experts is None else {"experts": [shard.experts.start, shard.experts.stop]}


def protocol_of(text: str | bytes) -> int:
    """The protocol of a plan in JSON; the other fields of a plan depend on it.

    Raises:
        WireError: not a plan of any version.
    """
    plan = parse_object(text, "the plan")
    protocol = plan.get("protocol", UNVERSIONED)
    if type(protocol) is not int or "epoch" not in plan:
        raise WireError(f"the plan cannot be read: no epoch, or not a protocol: {protocol!r:.40}")
    return protocol
