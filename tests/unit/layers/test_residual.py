"""Sums enter the hidden states once, whole or as parts that a plain sum makes whole."""

from __future__ import annotations

import pytest
import torch

from skynet.layers.norm import NoNorm, RMSNorm
from skynet.layers.residual import Normed, Plain, Residual, Scaled

HIDDEN, SHARDS = 12, 3
FLOAT = torch.float32


def norm() -> RMSNorm:
    return RMSNorm(torch.rand(HIDDEN) + 0.5, 1e-5, FLOAT)


def residuals() -> dict[str, Residual]:
    torch.manual_seed(0)
    bias = torch.randn(HIDDEN)
    return {
        "plain": Plain(None, HIDDEN),
        "biased": Plain(bias, HIDDEN),
        "scaled": Scaled(bias, HIDDEN, 0.3),
        "norm of the sum": Normed(bias, HIDDEN, norm(), NoNorm(FLOAT)),
        "norm after": Normed(None, HIDDEN, NoNorm(FLOAT), norm()),
    }


@pytest.mark.parametrize("kind", residuals())
def test_parts_sum_up_to_the_whole(kind: str) -> None:
    # Given the partials of three shards
    residual = residuals()[kind]
    x, partials = torch.randn(4, HIDDEN), torch.randn(SHARDS, 4, HIDDEN)
    total = partials.sum(0)
    # When each makes its part, the first shard with what must be there once
    parts = [
        residual.part(x, partial.clone(), shard == 0, lambda _: total.clone())
        for shard, partial in enumerate(partials)
    ]
    # Then their sum is the result of one shard with the whole sum
    torch.testing.assert_close(sum(parts), residual(x, total), rtol=1e-5, atol=1e-5)


def test_hidden_states_given_are_not_written_to() -> None:
    # Given hidden states that others may still read
    x = torch.randn(2, HIDDEN)
    before = x.clone()
    # When any residual adds to them
    for residual in residuals().values():
        residual(x, torch.ones(2, HIDDEN))
        residual.part(x, torch.ones(2, HIDDEN), True, lambda partial: partial)
    # Then they are as before
    assert torch.equal(x, before)


def test_the_scale_is_of_bias_and_sum() -> None:
    # When / Then Granite's multiplier is of all that attention gives
    bias, x, total = torch.ones(HIDDEN), torch.zeros(1, HIDDEN), torch.full((1, HIDDEN), 3.0)
    assert torch.equal(Scaled(bias, HIDDEN, 0.5)(x, total), torch.full((1, HIDDEN), 2.0))
