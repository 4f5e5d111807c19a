"""A model's stacks: the input of each, and its names in reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skynet.architecture.architecture import Architecture
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range
from skynet.wire.step import Row


@dataclass(frozen=True)
class CheckedStack:
    """An encoder-decoder's encoder or decoder, or the only stack of another model.

    name: prefix of the names of its places.
    layers: counted over all stacks.
    row: its input, in one step.
    encoder: the stack that it attends to.
    """

    arch: Architecture
    name: str
    layers: Range
    row: Row
    encoder: CheckedStack | None = None

    @property
    def ids(self) -> list[int]:
        return list(self.row.tokens)

    def part(self, shard: ShardPlan) -> ShardPlan:
        """A shard's part of this stack."""
        return shard.encoder if self.arch.bidirectional and shard.encoder else shard

    def layer_name(self, layer: int) -> str:
        return f"{self.name}layer {layer - self.layers.start}"


def stacks_of(arch: Architecture, inputs: Sequence[list[int]]) -> list[CheckedStack]:
    """In the order of their layers; `inputs` are the token ids for each."""
    names = ("",) if arch.encoder is None else ("encoder ", "decoder ")
    stacks: list[CheckedStack] = []
    for stack, name, ids in zip(arch.stacks, names, inputs, strict=True):
        encoder, start = (stacks[0] if stacks else None), stack.encoder_layers
        encoder_kv = None if encoder is None else (0, len(encoder.ids))
        row = Row(0, 0, tuple(ids), len(ids), encoder_kv=encoder_kv)
        layers = Range(start, start + stack.num_layers)
        stacks.append(CheckedStack(stack, name, layers, row, encoder))
    return stacks
