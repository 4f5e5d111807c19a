"""RMS norms of groups of a mixer's heads, with a gate; groups may span shards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from skynet.kernels.divided_norm import DividedNorm
from skynet.layers.norm import AllReduce


class GatedGroupNorm:
    """The RMS norm over the channels of each group, multiplied by silu(gate).

    The mean squares take an all-reduce of one number per token and group.
    """

    def __init__(
        self, weight: torch.Tensor, group_of: Sequence[int], heads: tuple[int, int], eps: float
    ) -> None:
        """weight: (heads of this shard, channels); group_of: the group of each of these heads.

        heads: how many groups there are in all shards, and heads in a group.
        """
        self.nbytes = weight.nbytes
        self._weight, self._eps = weight, eps
        self._group_of = torch.tensor(group_of, dtype=torch.int64, device=weight.device)
        self._groups, in_group = heads
        self._share = 1 / (in_group * weight.shape[1])

    def __call__(
        self, x: torch.Tensor, gate: torch.Tensor, gate_first: bool, all_reduce: AllReduce
    ) -> torch.Tensor:
        """`x` and `gate` (tokens, heads, channels) float32 to the same shape."""
        if gate_first:
            x = x * F.silu(gate)
        squares = x.new_zeros(len(x), self._groups)
        squares.index_add_(1, self._group_of, x.square().sum(-1)).mul_(self._share)
        inverse = all_reduce(squares).add(self._eps).rsqrt_()[:, self._group_of]
        x = (x * inverse[:, :, None]).mul_(self._weight)
        return x if gate_first else x.mul_(F.silu(gate))

    def for_kernels(self) -> DividedNorm:
        """The norm for a program, without the gate."""
        shares = torch.full((self._groups,), self._share)
        return DividedNorm(self._weight, shares, self._group_of, self._eps)
