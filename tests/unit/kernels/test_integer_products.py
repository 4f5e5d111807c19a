"""Products with activations rounded to int8: those of the numbers that all codes mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_quantised_products import GROUPS, LAYOUTS, LIBRARIES, SCALES, blocks_of, bound_of

from skynet.kernels.library import Library
from skynet.kernels.quantised import IntegerBlocks
from skynet.kernels.steps import INPUT, OUTPUT, StepKernels
from skynet.layers.int8_activations import rounded
from skynet.layers.linear import QuantisedKernelLinear, RoundingLinear, make_quantised_linear
from skynet.layers.rows import dequantised
from skynet.wire.blocks import BlockFormat, from_blocks, to_blocks
from skynet.wire.quantised import Quantised, pack_nibbles

ROWS = (1, 2, 3, 4, 5, 7, 33)


@pytest.fixture(params=LIBRARIES or [pytest.param("none", marks=pytest.mark.skip("none built"))])
def compiled(request: pytest.FixtureRequest) -> Library:
    return LIBRARIES[request.param]


def form_of(layout: str, group: int = 32, scale_dtype: str = "float16") -> BlockFormat:
    return BlockFormat(layout, group, scale_dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale_dtype", SCALES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("outputs", "groups"), [(1, 1), (31, 2), (32, 3), (83, 5)])
def test_products_are_those_of_rounded_activations(
    compiled: Library, layout: str, scale_dtype: str, group: int, outputs: int, groups: int
) -> None:
    # Given a quantised weight, packed for integer products
    form = form_of(layout, group, scale_dtype)
    blocks, bias = blocks_of(form, outputs, groups), torch.randn(outputs)
    packed = IntegerBlocks(compiled, blocks, form, bias)
    weight = torch.from_numpy(from_blocks(blocks.numpy(), form).dequantised()).double()
    for rows in ROWS:
        x = torch.randn(rows, groups * group)
        # When it is multiplied
        result = packed(x)
        # Then the result is that of the rounded activations in float64, to float32's rounding
        expected = F.linear(rounded(x, group).double(), weight, bias.double())
        limit = 1e-6 * (bound_of(blocks, form, x) + bias.abs())
        assert ((result - expected).abs() <= limit).all()
    # And packing loses nothing
    assert torch.equal(packed.unpacked(), blocks)


def test_activations_become_the_nearest_of_255_numbers() -> None:
    # Given activations, of which the largest magnitude of each group has either sign
    x = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    # When they are rounded
    result = rounded(torch.from_numpy(x), 32).numpy()
    # Then each is the nearest multiple of the 127th part of the largest
    scales = np.abs(x.reshape(5, 3, 32)).max(2).repeat(32, axis=1).astype(np.float64) / 127
    np.testing.assert_allclose(result / scales, np.rint(x / scales), atol=1e-4)
    assert np.abs(result - x).max() > 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("group", GROUPS)
def test_sums_of_integers_are_exact(compiled: Library, layout: str, group: int) -> None:
    # Given codes and activations of the largest magnitudes, and scales that are powers of 2
    form, outputs, inputs = form_of(layout, group, "float32"), 40, 2 * group
    random = np.random.default_rng(group)
    values = [-128, 127] if layout == "q8" else [0, 15]
    codes = random.choice(values, (outputs, inputs)).astype(np.int8)
    codes[0], codes[1] = values[0], values[1]
    numbers = np.full((outputs, 2), 0.5, np.float32)
    minimums = None if layout == "q8" else -2 * numbers
    stored = codes if layout == "q8" else pack_nibbles(codes.astype(np.uint8))
    matrix = Quantised(layout, group, stored, numbers, minimums)  # type: ignore[arg-type]
    x = random.choice([-127, 127], (5, inputs)).astype(np.float32)
    x[0] = 127
    # When they are multiplied
    blocks = torch.from_numpy(to_blocks(matrix))
    result = IntegerBlocks(compiled, blocks, form, None)(torch.from_numpy(x))
    # Then no sum is rounded, or too large for its integers
    assert np.array_equal(result.numpy(), x @ matrix.dequantised().T)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_has_the_same_bits_in_any_number_of_rows_and_threads(
    compiled: Library, layout: str
) -> None:
    # Given rows that are multiplied alone on one thread
    form = form_of(layout)
    packed = IntegerBlocks(compiled, blocks_of(form, 640, 6), form, None)
    x, before = torch.randn(101, 192), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([packed(row[None]) for row in x])
        # When they are multiplied together on several
        torch.set_num_threads(3)
        together = packed(x)
    finally:
        torch.set_num_threads(before)
    # Then the bits are equal, as in a prompt and in the replay of its tokens
    assert torch.equal(alone, together)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_that_have_no_codes(compiled: Library, layout: str) -> None:
    # Given activations with an infinity and a NaN, large ones, and groups of zeros and of tiny ones
    form = form_of(layout)
    blocks = blocks_of(form, 32, 2)
    packed = IntegerBlocks(compiled, blocks, form, None)
    x = torch.ones(5, 64)
    x[0, 5], x[1, 40], x[2, 3] = torch.inf, torch.nan, 1e30
    x[3, :32], x[4] = 0, 1e-40
    # When they are multiplied
    result = packed(x)
    # Then those of infinity and NaN are not finite, and no others are lost
    assert not result[:2].isfinite().any()
    assert result[2:].isfinite().all()
    assert (result[4] == 0).all()
    # And PyTorch's operators agree
    twin = RoundingLinear(blocks, form, None)(x)
    assert torch.equal(twin.isfinite(), result.isfinite())
    torch.testing.assert_close(twin[2:], result[2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_kernels_pytorch_multiplies_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch, layout: str, dtype: torch.dtype
) -> None:
    # Given a product made with kernels, and one without
    form = form_of(layout)
    blocks, bias = blocks_of(form, 600, 2), torch.randn(600).to(dtype)
    with_kernels = make_quantised_linear(blocks, form, bias, dtype, int8=True)
    monkeypatch.setattr("skynet.layers.linear.kernels", lambda: None)
    without = make_quantised_linear(blocks, form, bias, dtype, int8=True)
    assert isinstance(without, RoundingLinear)
    x = torch.randn(9, 64).to(dtype)
    expected = F.linear(rounded(x.float(), 32), dequantised(blocks, form), bias.float())
    limit = 1e-2 if dtype == torch.bfloat16 else 1e-4
    # When they multiply / Then both have the products of the rounded activations
    for product in (without, with_kernels):
        torch.testing.assert_close(product(x), expected.to(dtype), atol=limit, rtol=limit)
        assert torch.equal(product.dense(), blocks)
    if LIBRARIES:
        assert isinstance(with_kernels, QuantisedKernelLinear)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_integer_products_are_operations_of_a_program(
    compiled: Library, layout: str, rows: int
) -> None:
    # Given a product that runs as a program
    form = form_of(layout)
    packed = IntegerBlocks(compiled, blocks_of(form, 64, 2), form, torch.randn(64))
    kernels = StepKernels(compiled)
    program, slots = kernels.program(), torch.arange(rows)
    assert packed.emit(program, (INPUT, OUTPUT))
    x = torch.randn(rows, 64)
    # When / Then
    assert torch.equal(program(x, kernels.step(slots, slots, [])), packed(x))
