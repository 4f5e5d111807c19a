"""Frequencies are those of Transformers; a rotation by complex numbers is its rotation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from skynet.architecture.architecture import Architecture
from skynet.layers.heads import interleave
from skynet.layers.rope import Rotary, dynamic_frequencies, inverse_frequencies, rotate
from skynet.models.registry import load_architecture

SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    {
        "rope_type": "yarn",
        "factor": 40.0,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.8,
        "mscale_all_dim": 0.5,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.7},
]
IDS = [f"{index}-{scaling['rope_type']}" for index, scaling in enumerate(SCALINGS)]


def both(scaling: dict[str, Any]) -> tuple[transformers.LlamaConfig, Architecture]:
    config = transformers.LlamaConfig(
        hidden_size=384,
        num_attention_heads=6,
        num_hidden_layers=2,
        intermediate_size=64,
        vocab_size=64,
        max_position_embeddings=16384,
        rope_parameters={"rope_theta": 500000.0, **scaling},
    )
    return config, load_architecture(config.to_dict())


@pytest.mark.parametrize("scaling", SCALINGS, ids=IDS)
def test_frequencies_and_attention_factor(scaling: dict[str, Any]) -> None:
    # Given a config with rope parameters
    config, arch = both(scaling)
    # When both compute the frequencies
    if scaling["rope_type"] == "default":
        expected, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config)
    # Then they are the same
    (rope,) = arch.rope_kinds
    assert torch.equal(inverse_frequencies(rope), expected)
    assert rope.attention_factor == factor


@pytest.mark.parametrize("length", [1, 16384, 16385, 30000, 65536])
def test_dynamic_frequencies(length: int) -> None:
    # Given dynamic scaling and a sequence's length
    config, arch = both({"rope_type": "dynamic", "factor": 4.0})
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=torch.tensor(length))
    # When SkyNet computes the frequencies of a token at that length
    frequencies = dynamic_frequencies(arch.rope_kinds[0], torch.tensor([length]))
    # Then they are the same
    torch.testing.assert_close(frequencies[0], expected, rtol=1e-6, atol=0)


def test_a_chunked_prompt_turns_as_a_whole_one() -> None:
    # Given a prompt longer than where stretching starts
    _, arch = both({"rope_type": "dynamic", "factor": 4.0})
    rotary = Rotary(arch.rope_kinds[0], torch.device("cpu"))
    positions, length = torch.arange(20000), torch.tensor(20000)
    whole = rotary.factors(positions, length.expand(20000))
    # When its first tokens are computed in a separate chunk
    chunk = rotary.factors(positions[:8], length.expand(8))
    # Then they turn by the same angles
    torch.testing.assert_close(chunk, whole[:8], rtol=1e-6, atol=0)


@pytest.mark.parametrize("scaling", SCALINGS, ids=IDS)
def test_rotation_of_interleaved_heads(scaling: dict[str, Any]) -> None:
    # Given heads as a checkpoint's weights give them
    config, arch = both(scaling)
    torch.manual_seed(0)
    positions = torch.arange(100, 109)
    x = torch.randn(9, 6, 64)
    module = LlamaRotaryEmbedding(config)
    cosines, sines = module(x, positions[None])
    expected, _ = apply_rotary_pos_emb(
        x.transpose(0, 1)[None], x.transpose(0, 1)[None], cosines, sines
    )
    # When SkyNet interleaves and turns them
    interleaved = torch.empty(6 * 64, 9)
    interleave(x.permute(1, 2, 0).reshape(6 * 64, 9), interleaved, 64, 64)
    heads = interleaved.t().reshape(9, 6, 64).contiguous()
    factors = Rotary(arch.rope_kinds[0], torch.device("cpu")).factors(positions, positions)
    turned = rotate(heads, factors)
    # Then they are the same heads in another order
    plain = torch.cat([turned[..., 0::2], turned[..., 1::2]], dim=-1)
    torch.testing.assert_close(plain, expected[0].transpose(0, 1), rtol=1e-4, atol=2e-5)


def test_a_part_of_rows_of_odd_length_is_rotated_in_place() -> None:
    # Given the last numbers of rows of odd length, which cannot be viewed as complex numbers
    rows = torch.randn(3, 2, 13)
    factors = torch.polar(torch.ones(3, 1, 4), torch.randn(3, 1, 4))
    expected = rotate(rows[..., 5:].contiguous(), factors)
    before = rows[..., :5].clone()
    # When they are rotated / Then they alone are changed
    assert rotate(rows[..., 5:], factors) is not None
    torch.testing.assert_close(rows[..., 5:], expected)
    assert torch.equal(rows[..., :5], before)
