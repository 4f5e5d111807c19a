"""Blocks of GGUF files: the gguf package's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from skynet.checkpoint.formats.gguf_blocks import DECODERS, decode
from skynet.errors import CheckpointError

# Where the blocks of a type have float16 numbers.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "IQ3_S": [0],
}
ROUNDED = ["Q5_1", "Q5_K", "IQ3_S"]


def random_rows(kind: str, rows: int, blocks: int) -> np.ndarray:
    """Any bytes, but numbers between 2**-7 and 2."""
    size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    content = np.random.default_rng(0).integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for at in HALVES.get(kind, []):
        content[:, :, at + 1] = content[:, :, at + 1] & 0b10111111 | 0b00100000
    if kind == "MXFP4":
        content[:, :, 0] = 100 + content[:, :, 0] % 28
    return content.reshape(rows, -1)


@pytest.mark.parametrize("kind", DECODERS)
def test_blocks_are_decoded_exactly(kind: str) -> None:
    # Given
    rows = random_rows(kind, 5, 3)
    # When
    matrix = decode(rows, kind)
    # Then
    expected = dequantize(rows, GGMLQuantizationType[kind])
    assert np.ptp(expected) > 0
    np.testing.assert_array_equal(matrix.dequantised(), expected)


@pytest.mark.parametrize("kind", ROUNDED)
def test_other_blocks_are_rounded_to_q8(kind: str) -> None:
    # Given
    rows = random_rows(kind, 5, 8)
    # When
    matrix = decode(rows, kind)
    # Then no number is further off than half a step of its group, and the scale's rounding
    expected = dequantize(rows, GGMLQuantizationType[kind]).reshape(5, -1, 32)
    largest = np.abs(expected).max(axis=2, keepdims=True)
    error = np.abs(matrix.dequantised().reshape(expected.shape) - expected)
    assert (matrix.layout, matrix.group) == ("q8", 32)
    assert 0 < (error / largest).max() < 0.5 / 127 + 2**-11


def test_half_a_block_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no blocks of Q4_K \(144\)"):
        decode(np.zeros((2, 100), np.uint8), "Q4_K")
