"""Relative position buckets (Raffel et al., 2020, arXiv:1910.10683): scores by the distance."""

from __future__ import annotations

import math

import torch

from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Relative
from skynet.layers.weights import Loader
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range


class RelativeBias:
    """What one shard's heads add to their scores, in every layer of a stack."""

    def __init__(
        self, relative: Relative, table: torch.Tensor, kv_heads: int, bidirectional: bool
    ) -> None:
        """table: (buckets, heads of this shard) float32."""
        self._relative, self._table, self._kv_heads = relative, table, kv_heads
        self._bidirectional = bidirectional

    def of(self, positions: torch.Tensor, keys: Range) -> torch.Tensor:
        """(kv_heads, group, tokens, keys) float32 for tokens at `positions` (tokens,)."""
        there = torch.arange(keys.start, keys.stop) - positions[:, None]
        number = buckets(there, self._relative, self._bidirectional).to(self._table.device)
        return self._table[number].permute(2, 0, 1).unflatten(0, (self._kv_heads, -1))


def buckets(distance: torch.Tensor, relative: Relative, bidirectional: bool) -> torch.Tensor:
    """The bucket of each key position less query position, int64.

    Half of the buckets are one distance each, the others widen logarithmically; where a token sees
    those after it, they have buckets of their own.
    """
    count = relative.buckets
    if bidirectional:
        count //= 2
        after, distance = (distance > 0).long() * count, distance.abs()
    else:
        after, distance = torch.zeros_like(distance), (-distance).clamp(min=0)
    exact = count // 2
    growth = math.log(relative.max_distance / exact)
    wide = torch.log(distance.float() / exact) / growth * (count - exact)
    # A distance of 0 has a logarithm that is no number of a bucket, and is in an exact one.
    wide = exact + wide.clamp(min=0).long()
    return after + torch.where(distance < exact, distance, wide.clamp(max=count - 1))


def load_relative_bias(
    arch: Architecture, relative: Relative, load: Loader, part: ShardPlan
) -> RelativeBias:
    """One stack's, from its table, which is whole on every shard."""
    table = load.float_matrix("relative")[:, part.heads.start : part.heads.stop]
    return RelativeBias(relative, table, part.kv_heads.size, arch.bidirectional)
