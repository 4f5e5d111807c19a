"""ALiBi (Press et al., 2021, arXiv:2108.12409): scores fall with distance, by a slope per head."""

from __future__ import annotations

import math

import torch

from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Alibi
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range


def slopes(num_heads: int) -> torch.Tensor:
    """(heads,) float32: a geometric series, then every second number of one twice as dense."""
    whole = 2 ** math.floor(math.log2(num_heads))
    series = [_series(whole, power) for power in range(1, whole + 1)]
    series += [_series(2 * whole, power) for power in range(1, 2 * (num_heads - whole), 2)]
    return torch.tensor(series)


def _series(count: int, power: int) -> float:
    return float(2 ** (-(2 ** -(math.log2(count) - 3)) * power))


class AlibiBias:
    """The score bias of one shard's heads."""

    def __init__(self, arch: Architecture, alibi: Alibi, part: ShardPlan) -> None:
        of_shard = slopes(arch.num_heads)[part.heads.start : part.heads.stop]
        self._alibi, self._kv_heads = alibi, part.kv_heads.size
        self._slopes = (of_shard.bfloat16() if alibi.bfloat16 else of_shard)[:, None]

    def of(self, positions: torch.Tensor, keys: Range) -> torch.Tensor:
        """(kv_heads, group, tokens, keys) float32 for tokens at `positions` (tokens,).

        Relative to the position of the token: softmax is the same, and small numbers round less.
        """
        at_keys = self._at(torch.arange(keys.start, keys.stop))[:, None, :]
        bias = at_keys - self._at(positions)[:, :, None]  # (heads, tokens, keys)
        return (bias * self._alibi.scale).unflatten(0, (self._kv_heads, -1))

    def by_distance(self, count: int) -> torch.Tensor | None:
        """See `Bias`; biases that are rounded to bfloat16 depend on both positions."""
        if self._alibi.bfloat16:
            return None
        return self.of(torch.arange(count), Range(0, 1)).flatten(0, 1).flatten(1)

    def _at(self, positions: torch.Tensor) -> torch.Tensor:
        return (self._slopes * positions).float()
