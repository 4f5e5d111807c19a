"""Slopes and biases are those of Transformers, up to what softmax does not see."""

from __future__ import annotations

import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor as bloom_alibi
from transformers.models.falcon.modeling_falcon import build_alibi_tensor as falcon_alibi

from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Alibi
from skynet.layers.alibi import AlibiBias, slopes
from skynet.planning.ranges import Range
from skynet.planning.split import shard_plans


def architecture(heads: int, alibi: Alibi) -> Architecture:
    return Architecture(
        model_type="tiny",
        hidden_size=8 * heads,
        num_layers=1,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=8,
        intermediate_size=8,
        vocab_size=64,
        max_positions=64,
        norm="layer",
        norm_eps=1e-5,
        activation="gelu",
        gated=False,
        ropes=(None,),
        learned_positions=False,
        windows=(None,),
        attention_scale=1.0,
        weights=(),
        prefixes=("",),
        alibi=alibi,
    )


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 71, 112])
def test_slopes(heads: int) -> None:
    # Given the bias of Transformers at position 1, which is the slope itself
    expected = bloom_alibi(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)[:, 0, 1]
    # When / Then SkyNet's slopes are the same
    torch.testing.assert_close(slopes(heads), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rounded", [False, True])
def test_biases_of_a_shard(rounded: bool) -> None:
    # Given the second of two shards of 6 heads, and tokens at three positions
    alibi = Alibi(scale=0.5, bfloat16=rounded)
    arch = architecture(6, alibi)
    part = shard_plans(arch, 2)[1]
    positions = torch.tensor([3, 300, 999])
    make = falcon_alibi if rounded else bloom_alibi
    whole = make(torch.ones(1, 1000, dtype=torch.long), 6, torch.float32)[3:, 0]  # (heads, keys)
    # When it makes their biases
    bias = AlibiBias(arch, alibi, part).of(positions, Range(100, 1000))
    # Then they differ from those of Transformers by a number a token, which softmax does not see
    assert bias.shape == (3, 1, 3, 900)
    expected = (whole[:, None, 100:] - whole[:, positions, None]) * alibi.scale
    torch.testing.assert_close(bias[:, 0], expected, rtol=1e-5, atol=1e-4)
