"""The norm of groups of heads, of which shards have parts."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from skynet.layers.gated_norm import GatedGroupNorm
from skynet.layers.lockstep import run_in_lockstep
from skynet.layers.norm import AllReduce

HEADS, IN_GROUP, CHANNELS, EPS = 6, 3, 4, 1e-5


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("borders", [(0, 6), (0, 3, 6), (0, 2, 6), (0, 1, 1, 4, 6)])
def test_groups_may_span_shards(borders: tuple[int, ...], gate_first: bool) -> None:
    # Given heads of two groups, and shards that divide them anywhere
    torch.manual_seed(0)
    x, gate = torch.randn(2, 5, HEADS, CHANNELS).unbind()
    weight = torch.randn(HEADS, CHANNELS)
    groups = HEADS // IN_GROUP

    def run(start: int, stop: int, all_reduce: AllReduce) -> torch.Tensor:
        numbers = [head // IN_GROUP for head in range(start, stop)]
        norm = GatedGroupNorm(weight[start:stop], numbers, (groups, IN_GROUP), EPS)
        return norm(x[:, start:stop].clone(), gate[:, start:stop], gate_first, all_reduce)

    # When each norms its heads
    parts = [lambda all_reduce, a=a, b=b: run(a, b, all_reduce) for a, b in pairwise(borders)]
    made = run_in_lockstep(parts)
    # Then together they are the norm over each group's channels, in one sum
    gated = x * F.silu(gate) if gate_first else x
    squares = gated.unflatten(1, (groups, IN_GROUP)).square().mean((2, 3))
    inverse = (squares + EPS).rsqrt().repeat_interleave(IN_GROUP, 1)
    expected = gated * inverse[:, :, None] * weight
    expected = expected if gate_first else expected * F.silu(gate)
    assert len(made.partials) == 1
    torch.testing.assert_close(torch.cat(made.outputs, dim=1), expected)
