"""The plan: the layers, heads, columns and vocabulary of each shard. Frozen, pure, JSON.

Knows neither how plans are made (split.py) nor where they are stored (store/).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from skynet.planning.ranges import Range


@dataclass(frozen=True)
class ShardPlan:
    """One tensor-parallel slice of one stage, in units of the model.

    `vocab` cuts the embedding in the first stage and the head in the last one. `encoder` is the
    slice of an encoder-decoder's encoder, whose sizes may differ.
    """

    heads: Range
    kv_heads: Range
    columns: Range
    vocab: Range
    encoder: ShardPlan | None = None

    @classmethod
    def of(cls, data: dict[str, Any]) -> ShardPlan:
        """From the output of `asdict`."""
        ranges = {name: Range(**bounds) for name, bounds in data.items() if name != "encoder"}
        encoder = data.get("encoder")
        return cls(**ranges, encoder=None if encoder is None else cls.of(encoder))


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

    epoch: int
    model: str  # content digest of the staged checkpoint
    name: str  # for people
    dtype: str  # "float32" or "bfloat16": of activations, sums, keys and values
    weight_dtype: str  # of weights in memory; never wider than `dtype`
    chord_span: str  # "layer", "stage" or "auto"
    num_slots: int  # sequences a shard can hold at once
    slot_tokens: int  # tokens of one slot: prompt and answer together
    stages: tuple[StagePlan, ...]
    workers: tuple[str, ...] = ()
    revision: int = 0  # of the target that it was made for
    encoder_layers: int = 0  # of an encoder-decoder; they come first

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
        return replace(self, epoch=epoch)

    def placed(self) -> dict[str, tuple[int, int]]:
        """Member id -> (stage, shard), for members with an address."""
        pairs = zip(self.workers, self.addresses(), strict=False)
        return {worker: address for worker, address in pairs if worker}

    def same_slice(self, address: tuple[int, int], other: Plan, there: tuple[int, int]) -> bool:
        """Whether `address` has exactly the slice that `there` has in the other plan."""
        same = ("model", "dtype", "weight_dtype", "num_slots", "slot_tokens")
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
        data: dict[str, Any] = json.loads(text)
        data["stages"] = tuple(
            StagePlan(
                layers=Range(**stage["layers"]),
                shards=tuple(ShardPlan.of(shard) for shard in stage["shards"]),
            )
            for stage in data["stages"]
        )
        data["workers"] = tuple(data.get("workers", ()))
        return cls(**data)

    def summary(self) -> dict[str, Any]:
        """The plan for people and `--json`: layers per stage, heads per shard."""
        return {
            "epoch": self.epoch,
            "model": self.name,
            "dtype": self.dtype,
            "weight_dtype": self.weight_dtype,
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
                        }
                        for number, shard in enumerate(stage.shards)
                    ],
                }
                for index, stage in enumerate(self.stages)
            ],
        }
