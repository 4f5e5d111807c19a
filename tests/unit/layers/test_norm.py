"""Norms give the results of PyTorch's norms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from skynet.layers.norm import LayerNorm, NoNorm, RMSNorm


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4])
def test_rms_norm(scale: float) -> None:
    # Given hidden states of any size, zero included
    torch.manual_seed(0)
    x, weight = torch.randn(5, 96) * scale, torch.rand(96) + 0.5
    # When they are normed
    result = RMSNorm(weight, 1e-5, torch.float32)(x)
    # Then the result is the textbook's
    expected = weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(result, expected, rtol=2e-6, atol=1e-7)


def test_layer_norm_in_bfloat16() -> None:
    # Given float32 hidden states and products in bfloat16
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 32), torch.rand(32), torch.rand(32)
    # When they are normed
    result = LayerNorm(weight, bias, 1e-5, torch.bfloat16)(x)
    # Then only the result is rounded
    assert torch.equal(result, F.layer_norm(x, (32,), weight, bias, 1e-5).bfloat16())


def test_a_layer_norm_with_a_weight_row_per_head() -> None:
    # Given a weight a head, and a bias
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 4, 8), torch.rand(4, 8), torch.rand(4, 8)
    # When heads are normed together
    result = LayerNorm(weight, bias, 1e-5, torch.float32)(x)
    # Then each is as it were alone
    for head in range(4):
        alone = F.layer_norm(x[:, head], (8,), weight[head], bias[head], 1e-5)
        torch.testing.assert_close(result[:, head], alone)


def test_without_a_norm_only_the_dtype_changes() -> None:
    # When / Then
    x = torch.randn(2, 4)
    assert torch.equal(NoNorm(torch.bfloat16)(x), x.bfloat16())
    assert NoNorm(torch.float32)(x) is x
