"""The stacks of a model as a check goes through them: what each reads, and how reports name it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skynet.architecture.architecture import Architecture
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range
from skynet.wire.step import Row


@dataclass(frozen=True)
class CheckedStack:
    """An encoder-decoder's encoder or decoder, or all of another model.

    name: what the names of its places begin with.
    layers: their numbers in the model.
    row: what it reads, in one step.
    encoder: whose texts it attends to.
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
        """What a shard has of this stack."""
        return shard.encoder if self.arch.bidirectional and shard.encoder else shard

    def layer_name(self, layer: int) -> str:
        return f"{self.name}layer {layer - self.layers.start}"


def stacks_of(arch: Architecture, reads: Sequence[list[int]]) -> list[CheckedStack]:
    """In the order of their layers; `reads` are the token ids of each."""
    names = ("",) if arch.encoder is None else ("encoder ", "decoder ")
    found: list[CheckedStack] = []
    for stack, name, ids in zip(arch.stacks, names, reads, strict=True):
        encoder, start = (found[0] if found else None), stack.encoder_layers
        encoder_kv = None if encoder is None else (0, len(encoder.ids))
        row = Row(0, 0, tuple(ids), len(ids), encoder_kv=encoder_kv)
        layers = Range(start, start + stack.num_layers)
        found.append(CheckedStack(stack, name, layers, row, encoder))
    return found
