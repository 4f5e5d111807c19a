"""Blocks hold what a quantised matrix is made of, and are cut as it is."""

from __future__ import annotations

import numpy as np
import pytest

from skynet.errors import WireError
from skynet.wire.blocks import BlockFormat, from_blocks, to_blocks
from skynet.wire.quantised import Quantised, quantise


def matrix(layout: str, scale_dtype: str) -> Quantised:
    numbers = np.random.default_rng(1).normal(size=(6, 96)).astype(np.float32)
    made = quantise(numbers, layout)  # type: ignore[arg-type]
    minimums = None if made.minimums is None else made.minimums.astype(scale_dtype)
    scales = made.scales.astype(scale_dtype)
    return Quantised(made.layout, made.group, made.codes, scales, minimums)


@pytest.mark.parametrize("layout", ["q8", "q4"])
@pytest.mark.parametrize("scale_dtype", ["float16", "float32"])
def test_a_matrix_comes_back_from_its_blocks(layout: str, scale_dtype: str) -> None:
    # Given a matrix and its format
    made = matrix(layout, scale_dtype)
    form = BlockFormat(layout, 32, scale_dtype)  # type: ignore[arg-type]
    # When it becomes blocks
    blocks = to_blocks(made)
    # Then they have the format's shape and size, and the matrix comes back
    assert blocks.shape == form.shape(*made.shape)
    assert blocks.nbytes == made.nbytes == form.num_bytes(*made.shape)
    np.testing.assert_array_equal(from_blocks(blocks, form).dequantised(), made.dequantised())
    # And regions of blocks are regions of the matrix
    part = from_blocks(blocks[2:5, 1:3], form)
    np.testing.assert_array_equal(part.dequantised(), made.dequantised()[2:5, 32:96])


def test_a_format_has_a_name() -> None:
    form = BlockFormat("q4", 32, "float16")
    assert str(form) == "q4_32_float16"
    assert BlockFormat.parse(str(form)) == form


@pytest.mark.parametrize(
    "name", ["", "q4", "q5_32_float16", "q4_0_float16", "q4_12_float16", "q4_32_float64", "q4_32"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(WireError):
        BlockFormat.parse(name)


def test_groups_divide_the_inputs() -> None:
    with pytest.raises(WireError, match="48 inputs are not a multiple of groups of 32"):
        BlockFormat("q4", 32, "float16").shape(4, 48)


def test_blocks_of_another_format_are_refused() -> None:
    blocks = to_blocks(matrix("q4", "float16"))
    with pytest.raises(WireError, match="are not blocks of q8_32_float16"):
        from_blocks(blocks, BlockFormat("q8", 32, "float16"))
