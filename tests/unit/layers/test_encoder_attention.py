"""Attention of whole texts: masks that are views of one number for each distance."""

from __future__ import annotations

import pytest
import torch

from skynet.architecture.positions import Relative
from skynet.layers.encoder_attention import QUERY_CHUNK, attend_text_batches, text_batches
from skynet.layers.relative import RelativeBias
from skynet.planning.ranges import Range
from skynet.wire.step import Row

HEADS, HEAD_DIM, SCALE = 3, 4, 0.4


def rows(*lengths: int) -> list[Row]:
    return [Row(slot, 0, (1,) * length, length) for slot, length in enumerate(lengths)]


def relative_bias() -> RelativeBias:
    table = torch.randn(8, HEADS, generator=torch.Generator().manual_seed(2))
    return RelativeBias(Relative(8, 20), table, HEADS, bidirectional=True)


@pytest.mark.parametrize("window", [None, 5, 700])
@pytest.mark.parametrize("biased", [False, True])
def test_each_token_sees_its_text_alone(biased: bool, window: int | None) -> None:
    # Given two short texts of one length, and one that is longer than a block of queries
    lengths = (7, 7, QUERY_CHUNK + 90, 1)
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(sum(lengths), HEADS, HEAD_DIM, generator=generator) for _ in range(3))
    bias = relative_bias() if biased else None
    # When
    calls = text_batches(rows(*lengths), window, torch.float32, torch.device("cpu"), bias)
    mixed_all = attend_text_batches(q, k, v, calls, SCALE)
    # Then it is what whole matrices of scores give
    assert [call.count for call in calls] == [2, 1, 1]
    start = 0
    for length in lengths:
        place = torch.arange(length)
        scores = torch.einsum("qhd,khd->hqk", *(x[start : start + length] for x in (q, k))) * SCALE
        if bias is not None:
            scores += bias.of(place, Range(0, length)).flatten(0, 1)
        if window is not None:
            scores.masked_fill_((place[:, None] - place).abs() > window, float("-inf"))
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[start : start + length])
        torch.testing.assert_close(mixed_all[start : start + length], mixed.flatten(1))
        start += length


def test_a_mask_takes_a_number_for_each_distance() -> None:
    (call,) = text_batches(rows(4000), 100, torch.float32, torch.device("cpu"), relative_bias())
    assert call.mask is not None
    assert call.mask.shape == (1, HEADS, 4000, 4000)
    assert call.mask.untyped_storage().nbytes() == 4 * HEADS * (2 * 4000 - 1)
