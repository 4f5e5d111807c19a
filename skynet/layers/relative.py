"""Relative position buckets (Raffel et al., 2020, arXiv:1910.10683): a score bias by distance."""

from __future__ import annotations

import math

import torch

from skynet.architecture.positions import Relative
from skynet.layers.weights import Loader
from skynet.planning.ranges import Range


class RelativeBias:
    """The score bias of one shard's heads, the same in every layer of a stack."""

    def __init__(
        self, relative: Relative, table: torch.Tensor, kv_heads: int, bidirectional: bool
    ) -> None:
        """table: (buckets, heads of this shard) float32."""
        self._relative, self._table, self._kv_heads = relative, table, kv_heads
        self._bidirectional = bidirectional

    def of(self, positions: torch.Tensor, keys: Range) -> torch.Tensor:
        """(kv_heads, group, tokens, keys) float32 for tokens at `positions` (tokens,)."""
        distances = torch.arange(keys.start, keys.stop) - positions[:, None]
        number = buckets(distances, self._relative, self._bidirectional).to(self._table.device)
        return self._table[number].permute(2, 0, 1).unflatten(0, (self._kv_heads, -1))

    def by_distance(self, count: int) -> torch.Tensor:
        """See `Bias`."""
        return self.of(torch.arange(count), Range(0, 1)).flatten(0, 1).flatten(1).contiguous()


def buckets(distance: torch.Tensor, relative: Relative, bidirectional: bool) -> torch.Tensor:
    """The bucket of each `distance`, key position minus query position, int64.

    Half of the buckets hold one distance each, the others widen logarithmically. Where keys after
    the query are visible, they take the second half of all buckets.
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
    # The logarithm of distance 0 is -inf, but that distance has an exact bucket.
    wide = exact + wide.clamp(min=0).long()
    return after + torch.where(distance < exact, distance, wide.clamp(max=count - 1))


def load_relative_bias(load: Loader, relative: Relative) -> RelativeBias:
    """The bias of one stack, from its table, which is whole on every shard."""
    heads = load.part.heads
    table = load.float32.matrix("relative")[:, heads.start : heads.stop]
    return RelativeBias(relative, table, load.part.kv_heads.size, load.arch.bidirectional)
