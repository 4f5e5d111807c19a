"""Blocks of GGUF files: the gguf package's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from skynet.checkpoint.formats.gguf_blocks import DECODERS, decode
from skynet.errors import CheckpointError
from tests.gguf_files import random_blocks

ROUNDED = ["Q5_1", "Q5_K", "IQ3_S"]


def random_rows(kind: str) -> np.ndarray:
    return random_blocks(kind, (5, 768), np.random.default_rng(0))


@pytest.mark.parametrize("kind", DECODERS)
def test_blocks_are_decoded_exactly(kind: str) -> None:
    # Given
    rows = random_rows(kind)
    # When
    matrix = decode(rows, kind)
    # Then
    expected = dequantize(rows, GGMLQuantizationType[kind])
    assert np.ptp(expected) > 0
    np.testing.assert_array_equal(matrix.dequantised(), expected)


@pytest.mark.parametrize("kind", ROUNDED)
def test_other_blocks_are_rounded_to_q8(kind: str) -> None:
    # Given
    rows = random_rows(kind)
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
