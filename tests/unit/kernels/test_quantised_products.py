"""Products with quantised weights are float32 products with the numbers that the codes mean."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from skynet.kernels.library import Library, available
from skynet.kernels.many_rows import UNPACKED_ROWS
from skynet.kernels.quantised import PackedBlocks
from skynet.kernels.steps import INPUT, OUTPUT, WIDE, StepKernels
from skynet.layers.linear import (
    DequantisingLinear,
    JoinedLinear,
    Linear,
    QuantisedKernelLinear,
    make_linear,
    make_quantised_linear,
)
from skynet.layers.rows import BlockRows, dequantised
from skynet.wire.blocks import BlockFormat, from_blocks

LIBRARIES = available()
GROUPS = [8, 16, 24, 32, 64, 128]
LAYOUTS = ["q4", "q8"]
SCALES = ["float16", "float32"]


@pytest.fixture(params=LIBRARIES or [pytest.param("none", marks=pytest.mark.skip("none built"))])
def compiled(request: pytest.FixtureRequest) -> Library:
    return LIBRARIES[request.param]


def blocks_of(form: BlockFormat, outputs: int, groups: int) -> torch.Tensor:
    """Any codes, scales of both signs and, in q4, any minimums."""
    torch.manual_seed(outputs + groups)
    blocks = torch.randint(0, 256, form.shape(outputs, groups * form.group), dtype=torch.uint8)
    count = 1 if form.layout == "q8" else 2
    numbers = torch.randn(outputs, groups, count) / 16
    dtype = torch.float16 if form.scale_dtype == "float16" else torch.float32
    blocks[..., form.code_bytes :] = numbers.to(dtype).view(torch.uint8)
    return blocks


def bound_of(blocks: torch.Tensor, form: BlockFormat, x: torch.Tensor) -> torch.Tensor:
    """Sums of magnitudes: of activations times codes with their scales, and times minimums."""
    matrix = from_blocks(blocks.numpy(), form)
    scales = torch.from_numpy(matrix.scales).double().abs()
    largest = scales * (128 if form.layout == "q8" else 15)
    if matrix.minimums is not None:
        largest += torch.from_numpy(matrix.minimums).double().abs()
    return x.abs().double() @ largest.repeat_interleave(form.group, dim=1).t()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale_dtype", SCALES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("outputs", "groups"), [(1, 1), (31, 2), (32, 3), (83, 5)])
def test_products_are_those_of_the_numbers(
    compiled: Library, layout: str, scale_dtype: str, group: int, outputs: int, groups: int
) -> None:
    # Given a quantised weight, packed
    form = BlockFormat(layout, group, scale_dtype)  # type: ignore[arg-type]
    blocks, bias = blocks_of(form, outputs, groups), torch.randn(outputs)
    packed = PackedBlocks(compiled, blocks, form, bias)
    weight = torch.from_numpy(from_blocks(blocks.numpy(), form).dequantised())
    for rows in (1, 2, 3, 4, 5, 7, UNPACKED_ROWS - 1, UNPACKED_ROWS, 65):
        x = torch.randn(rows, groups * group)
        # When it is multiplied
        result = packed(x)
        # Then the result is that of the numbers, computed in float64, to float32's rounding
        expected = F.linear(x.double(), weight.double(), bias.double())
        assert result.dtype == torch.float32
        assert result.is_contiguous()
        limit = 1e-6 * (bound_of(blocks, form, x) + bias.abs())
        assert ((result - expected).abs() <= limit).all()
    # And packing loses nothing
    assert torch.equal(packed.unpacked(), blocks)


@pytest.mark.parametrize("rows", [2, 7, UNPACKED_ROWS - 1])
@pytest.mark.parametrize("group", [16, 32, 128, 136])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_has_the_same_bits_beside_others_and_on_any_number_of_threads(
    compiled: Library, layout: str, group: int, rows: int
) -> None:
    # Given a weight and rows that are multiplied alone on one thread
    form = BlockFormat(layout, group, "float16")  # type: ignore[arg-type]
    packed = PackedBlocks(compiled, blocks_of(form, 650, 3), form, None)
    x, before = torch.randn(rows, 3 * group), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([packed(row[None]) for row in x])
        # When they are multiplied together on several
        torch.set_num_threads(3)
        together = packed(x)
    finally:
        torch.set_num_threads(before)
    # Then the bits are equal
    assert torch.equal(alone, together)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_activations_that_are_not_finite_give_such_results(compiled: Library, layout: str) -> None:
    # Given activations with an infinity and a NaN, and large and small ones
    form = BlockFormat(layout, 32, "float16")  # type: ignore[arg-type]
    packed = PackedBlocks(compiled, blocks_of(form, 32, 2), form, None)
    x = torch.ones(3, 64)
    x[0, 5], x[1, 40], x[2, 3] = torch.inf, torch.nan, 1e30
    # When they are multiplied / Then no result of theirs is finite, and no other is lost
    result = packed(x)
    assert not result[:2].isfinite().any()
    assert result[2].isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale_dtype", SCALES)
def test_pytorch_gives_the_numbers_that_the_codes_mean(layout: str, scale_dtype: str) -> None:
    # Given blocks
    form = BlockFormat(layout, 16, scale_dtype)  # type: ignore[arg-type]
    blocks = blocks_of(form, 40, 3)
    expected = torch.from_numpy(from_blocks(blocks.numpy(), form).dequantised())
    # When / Then
    assert torch.equal(dequantised(blocks, form), expected)
    # And rows that are looked up are rows of those
    rows = BlockRows(blocks, form, torch.float32)
    numbers = torch.tensor([39, 0, 7, 7])
    assert torch.equal(rows(numbers), expected[numbers])
    assert (rows.nbytes, rows.width) == (blocks.nbytes, 48)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_kernels_pytorch_dequantises(
    monkeypatch: pytest.MonkeyPatch, layout: str, rows: int, dtype: torch.dtype
) -> None:
    # Given a machine without kernels
    form = BlockFormat(layout, 32, "float16")  # type: ignore[arg-type]
    blocks, bias = blocks_of(form, 600, 2), torch.randn(600).to(dtype)
    with_kernels = make_quantised_linear(blocks, form, bias, dtype)
    monkeypatch.setattr("skynet.layers.linear.kernels", lambda: None)
    x = torch.randn(rows, 64).to(dtype)
    # When a product is made
    product = make_quantised_linear(blocks, form, bias, dtype)
    # Then it is the kernels' to rounding, in the dtype of the activations
    assert isinstance(product, DequantisingLinear)
    for each in (product, with_kernels):
        assert_product(each, blocks, form, bias, x)
    if LIBRARIES:
        assert isinstance(with_kernels, QuantisedKernelLinear)


def assert_product(
    product: Linear, blocks: torch.Tensor, form: BlockFormat, bias: torch.Tensor, x: torch.Tensor
) -> None:
    expected = F.linear(x.float(), dequantised(blocks, form), bias.float())
    limit = 1e-2 if x.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(product(x), expected.to(x.dtype), atol=limit, rtol=limit)
    assert product.nbytes == blocks.nbytes + bias.nbytes
    assert torch.equal(product.dense(), blocks)


@pytest.mark.parametrize("rows", [1, 4])
def test_products_of_different_forms_are_operations_of_one_program(
    compiled: Library, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given weights as in one layer of a file of mixed blocks: q4 and q8 and bfloat16, end to end
    monkeypatch.setattr("skynet.layers.linear.kernels", lambda: compiled)
    torch.manual_seed(0)
    forms = [BlockFormat("q4", 32, "float32"), BlockFormat("q8", 16, "float16")]
    sizes, products = [33, 64, 7], list[Linear]()
    for form, outputs in zip(forms, sizes, strict=False):
        blocks, bias = blocks_of(form, outputs, 64 // form.group), torch.randn(outputs)
        products.append(make_quantised_linear(blocks, form, bias, torch.float32))
    products.append(make_linear(torch.randn(sizes[2], 64).bfloat16(), dtype=torch.float32))
    joined = JoinedLinear(products, sizes)
    out_form = BlockFormat("q4", 8, "float16")
    out = make_quantised_linear(blocks_of(out_form, 64, 104 // 8), out_form, None, torch.float32)
    # When they run as a program
    kernels = StepKernels(compiled)
    program = kernels.program()
    assert joined.emit(program, (INPUT, WIDE))
    assert out.emit(program, (WIDE, OUTPUT))
    slots = torch.arange(rows)
    x = torch.randn(rows, 64)
    result = program(x, kernels.step(slots, slots, []))
    # Then the bits are those of the products one by one
    assert torch.equal(result, out(joined(x)))
