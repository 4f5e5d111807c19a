"""Every kind of product gives the plain product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from skynet.kernels.library import kernels
from skynet.layers import linear
from skynet.layers.linear import (
    KernelLinear,
    PlainLinear,
    ScaledLinear,
    can_pack,
    make_linear,
)


@pytest.mark.parametrize("rows", [1, 3, 64, 257])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
def test_packed_agrees_with_plain(
    rows: int, biased: bool, dtype: torch.dtype, tolerance: float
) -> None:
    # Given a weight that is packed where the machine can
    torch.manual_seed(0)
    weight, bias = torch.randn(83, 48).to(dtype), torch.randn(83).to(dtype) if biased else None
    x = torch.randn(rows, 48).to(dtype)
    # When both multiply
    with torch.inference_mode():
        result = make_linear(weight, bias)(x)
        expected = F.linear(x, weight, bias)
    # Then they agree up to rounding
    assert result.dtype == dtype
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=10 * tolerance)


def test_without_packing_the_plain_product_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a machine without kernels, and a build of PyTorch without the private operations
    monkeypatch.setattr(linear, "_OPS", {})
    monkeypatch.setattr(linear, "kernels", lambda: None)
    weight, x = torch.randn(5, 4), torch.randn(2, 4)
    # When a product is made
    product = make_linear(weight)
    # Then it is the plain one
    assert isinstance(product, PlainLinear)
    assert torch.equal(product(x), F.linear(x, weight))


@pytest.mark.parametrize("rows", [1, 40])
def test_without_instructions_for_bfloat16_kernels_multiply(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    if kernels() is None:
        pytest.skip("no kernels")
    # Given a CPU for which oneDNN does not pack bfloat16
    monkeypatch.setattr(linear, "can_pack", lambda _: False)
    torch.manual_seed(0)
    weight, bias = torch.randn(33, 48).bfloat16(), torch.randn(33).bfloat16()
    x = torch.randn(rows, 48).bfloat16()
    # When a product of bfloat16 activations is made
    product = make_linear(weight, bias)
    # Then a kernel computes it, and rounds once
    assert isinstance(product, KernelLinear)
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert product(x).dtype == torch.bfloat16
    torch.testing.assert_close(product(x), exact.bfloat16(), rtol=2**-7, atol=1e-6)
    assert torch.equal(product.dense(), weight)


@pytest.mark.parametrize("weight", [torch.empty(6, 0), torch.empty(6, 0, dtype=torch.bfloat16)])
def test_an_empty_weight_is_not_packed(weight: torch.Tensor) -> None:
    # Given a shard without MLP columns
    # When / Then its product is zero, not an error
    assert not can_pack(weight)
    product = make_linear(weight, dtype=torch.float32)
    assert torch.equal(product(torch.empty(2, 0)), torch.zeros(2, 6))


def test_bytes_count_weight_and_bias() -> None:
    # When / Then
    assert make_linear(torch.zeros(6, 4), torch.zeros(6)).nbytes == (24 + 6) * 4
    narrow = torch.zeros(6, 4, dtype=torch.bfloat16)
    assert make_linear(narrow, torch.zeros(6), torch.float32).nbytes == 24 * 2 + 6 * 4


def test_a_scaled_product_is_of_each_part() -> None:
    # Given a product of two weights, with biases
    torch.manual_seed(0)
    weight, bias, x = torch.randn(5, 4), torch.randn(5), torch.randn(3, 4)
    product = ScaledLinear(make_linear(weight, bias), [2, 3], [0.5, 3.0])
    # When / Then each part of the outputs is multiplied by its factor, and nothing more is kept
    factors = torch.tensor([0.5, 0.5, 3.0, 3.0, 3.0])
    torch.testing.assert_close(product(x), F.linear(x, weight, bias) * factors)
    assert product.nbytes == 25 * 4
