"""The plan: which layers, heads, columns and vocabulary each shard has. Frozen, pure, JSON.

Knows nothing of how a plan is found (split.py) nor of where it lies (store/).
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

    `vocab` cuts the embedding in the first stage and the head in the last one. `encoder` has the
    same of an encoder-decoder's encoder, whose sizes are its own.
    """

    heads: Range
    kv_heads: Range
    columns: Range
    vocab: Range
    encoder: ShardPlan | None = None

    @classmethod
    def of(cls, data: dict[str, Any]) -> ShardPlan:
        """From what `asdict` made of one."""
        ranges = {name: Range(**own) for name, own in data.items() if name != "encoder"}
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

    `workers` has the id of the member at each address, in the order of `addresses()`; "" where
    nobody is. A plan that is only a layout has none.
    """

    epoch: int
    model: str  # content digest of the staged checkpoint
    name: str  # what people call it
    dtype: str  # "float32" or "bfloat16"
    chord_span: str  # "layer", "stage" or "auto"
    num_slots: int  # sequences a shard can hold at once
    slot_tokens: int  # tokens of one slot: prompt and answer together
    stages: tuple[StagePlan, ...]
    workers: tuple[str, ...] = ()
    revision: int = 0  # of the target it was made for
    encoder_layers: int = 0  # the first ones, of an encoder-decoder

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
        """Chords of a step that starts at layer `start`: none spans two stages."""
        spans = [stage.layers.overlap(Range(start, self.num_layers)) for stage in self.stages]
        return sum(-(-span.size // layers_per_chord) for span in spans)

    def with_epoch(self, epoch: int) -> Plan:
        return replace(self, epoch=epoch)

    def placed(self) -> dict[str, tuple[int, int]]:
        """Member id -> (stage, shard), of those that have a place."""
        pairs = zip(self.workers, self.addresses(), strict=False)
        return {worker: address for worker, address in pairs if worker}

    def same_slice(self, address: tuple[int, int], other: Plan, there: tuple[int, int]) -> bool:
        """Would a worker at `address` hold exactly what one at `there` of the other plan holds?"""
        same = ("model", "dtype", "num_slots", "slot_tokens")
        mine, theirs = self.stages[address[0]], other.stages[there[0]]
        return (
            all(getattr(self, name) == getattr(other, name) for name in same)
            and mine.layers == theirs.layers
            and mine.shards[address[1]] == theirs.shards[there[1]]
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
        """The plan as people and `--json` read it: layers per stage, heads per shard."""
        return {
            "epoch": self.epoch,
            "model": self.name,
            "dtype": self.dtype,
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
