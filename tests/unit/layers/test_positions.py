"""Sinusoids and buckets of distances are those of Transformers."""

from __future__ import annotations

import pytest
import torch
from model_families import encoder_decoder_config
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from skynet.architecture.positions import Relative
from skynet.layers.relative import RelativeBias, buckets
from skynet.layers.sinusoids import sinusoid_table
from skynet.models.registry import load_architecture
from skynet.planning.ranges import Range

LENGTH = 1024


def test_marians_positions() -> None:
    # Given the table of Transformers
    transformers_table = MarianSinusoidalPositionalEmbedding(LENGTH, 48).create_weight()
    # When / Then
    arch = load_architecture(encoder_decoder_config("marian").to_dict())
    assert arch.sinusoids is not None
    torch.testing.assert_close(sinusoid_table(arch.sinusoids, 0, LENGTH, 48), transformers_table)


def test_m2m_positions_come_after_that_of_the_padding() -> None:
    # Given a table whose angles far out are rounded
    transformers_table = M2M100SinusoidalPositionalEmbedding(LENGTH, 48, padding_idx=1).weights[2:]
    # When / Then SkyNet rounds them alike
    arch = load_architecture(encoder_decoder_config("m2m_100").to_dict())
    assert arch.sinusoids is not None
    skynet_table = sinusoid_table(arch.sinusoids, arch.position_offset, LENGTH, 48)
    torch.testing.assert_close(skynet_table, transformers_table, atol=0, rtol=0)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("count", "most"), [(32, 128), (8, 12), (20, 1000)])
def test_buckets(count: int, most: int, bidirectional: bool) -> None:
    # Given distances in both directions, many beyond the last bucket
    distance = torch.arange(-1500, 1500)
    expected = T5Attention._relative_position_bucket(distance, bidirectional, count, most)
    # When / Then
    assert torch.equal(buckets(distance, Relative(count, most), bidirectional), expected)


def test_biases_of_some_heads_and_keys() -> None:
    # Given a table of 8 buckets for 3 heads
    table = torch.arange(24.0).reshape(8, 3)
    bias = RelativeBias(Relative(8, 12), table, 3, bidirectional=False)
    # When tokens at 4 and 0 look at keys 2 to 4
    values = bias.of(torch.tensor([4, 0]), Range(2, 5))
    # Then each head has its number of the distance's bucket: 2, 1, 0, and 0 for later keys
    assert values.shape == (3, 1, 2, 3)
    assert values[1, 0].tolist() == [[7.0, 4.0, 1.0], [1.0, 1.0, 1.0]]
