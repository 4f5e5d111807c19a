"""GGUF files whose rope is scaled: logits are those of the safetensors original."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from harness import Checkpoint, cluster_of, last_logits
from references import save_random_model

from skynet.checkpoint.checkpoint import open_checkpoint
from skynet.checkpoint.gguf_rope import add_rope_scaling
from skynet.errors import CheckpointError
from skynet.models.registry import load_architecture

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
TYPES = {
    str: gguf.GGUFValueType.STRING,
    float: gguf.GGUFValueType.FLOAT32,
    int: gguf.GGUFValueType.UINT32,
}
POSITIONS = 128
PROMPT = [5 + 7 * at % 120 for at in range(60)]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, *parts, kind = name.split(".")
        return f"blk.{layer}.{NAMES['.'.join(parts)]}.{kind}"
    path, _, kind = name.rpartition(".")
    return f"{NAMES[path]}.{kind}"


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of Wq or Wk as llama.cpp has them: rotated pairs are neighbours."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def rope_freqs(config: Any) -> np.ndarray:
    """llama.cpp's divisors of Llama 3.1's frequencies, as its converter writes them."""
    rope, dims = config.rope_parameters, config.head_dim
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    divisors = []
    for frequency in 1.0 / rope["rope_theta"] ** (np.arange(0, dims, 2) / dims):
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def write_gguf(model: Any, file: Path) -> None:
    config, rope = model.config, model.config.rope_parameters
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    tokens = [chr(0x100 + number) for number in range(config.vocab_size - 1)]  # "Ā" is byte 0
    writer.add_token_list([*tokens, tokens[0] + tokens[1]])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_token_merges([f"{tokens[0]} {tokens[1]}"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_freqs(config))
    else:
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if "original_max_position_embeddings" in rope:
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        kind = name.split(".")[-2]
        array = interleaved(weight, heads[kind]) if kind in heads else weight
        writer.add_tensor(gguf_name(name), array.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("rope", [LLAMA3, LINEAR, YARN], ids=lambda rope: rope["rope_type"])
def test_a_gguf_file_has_the_logits_of_the_original(rope: dict[str, Any], tmp_path: Path) -> None:
    # Given a checkpoint whose numbers bfloat16 holds, and the same as a GGUF file
    fields = {"rope_parameters": rope, "max_position_embeddings": POSITIONS, "bos_token_id": 1}
    model, _ = save_random_model("llama", fields, tmp_path / "original")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    model.save_pretrained(tmp_path / "original")
    write_gguf(model, tmp_path / "tiny.gguf")
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0, -1].numpy()
        plain = copy.deepcopy(model.config)
        plain.rope_parameters = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
        unscaled = type(model)(plain)
        unscaled.load_state_dict(model.state_dict())
        without = unscaled(torch.tensor([PROMPT])).logits[0, -1].numpy()
    assert np.abs(expected - without).max() > 0.01
    # When it is converted
    converted = open_checkpoint(str(tmp_path / "tiny.gguf"), tmp_path / "cache")
    # Then SkyNet's logits are those of the original
    for directory in (tmp_path / "original", converted.path):
        checkpoint = Checkpoint(directory)
        cluster = cluster_of(checkpoint, 1, 2)
        logits = last_logits(cluster, checkpoint.arch, PROMPT, 4)
        cluster.close()
        np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=1e-3)
    # And so are those of Transformers, which reads the converted directory
    again = transformers.AutoModelForCausalLM.from_pretrained(converted.path, dtype=torch.float32)
    with torch.no_grad():
        logits = again(torch.tensor([PROMPT])).logits[0, -1].numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=1e-3)
    # And every length has the same frequencies, and as many positions as before
    original = load_architecture(json.loads((tmp_path / "original/config.json").read_text()))
    arch = load_architecture(converted.config)
    assert (arch.rope_switch, arch.max_positions) == (0, original.max_positions)


def file_with(tmp_path: Path, tensors: dict[str, list[float]], **metadata: Any) -> Path:
    """A GGUF file of Phi-3 with this rope scaling, and no weights but these."""
    file = tmp_path / "phi.gguf"
    writer = gguf.GGUFWriter(file, "phi3")
    for name, value in metadata.items():
        writer.add_key_value(f"phi3.rope.scaling.{name}", value, TYPES[type(value)])
    for name, values in tensors.items():
        writer.add_tensor(name, np.array(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_factors_for_two_lengths_become_longrope(tmp_path: Path) -> None:
    # Given Phi-3's tensors
    tensors = {"rope_factors_short.weight": [1, 1.25], "rope_factors_long.weight": [2, 4.5]}
    file = file_with(tmp_path, tensors, original_context_length=4096, attn_factor=1.25)
    config: dict[str, Any] = {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}
    # When
    add_rope_scaling(config, file)
    # Then
    assert config["rope_parameters"] == {
        "rope_theta": 5.0,
        "rope_type": "longrope",
        "short_factor": [1.0, 1.25],
        "long_factor": [2.0, 4.5],
        "attention_factor": 1.25,
        "original_max_position_embeddings": 4096,
    }


def test_where_layers_have_two_kinds_of_rope_the_whole_one_is_scaled(tmp_path: Path) -> None:
    # Given Gemma 3's metadata
    file = file_with(tmp_path, {"some.weight": [1.0]}, type="linear", factor=8.0)
    ropes = {kind: {"rope_type": "default"} for kind in ("full_attention", "sliding_attention")}
    # When
    add_rope_scaling({"rope_parameters": ropes}, file)
    # Then
    assert ropes["full_attention"] == {"rope_type": "linear", "factor": 8.0}
    assert ropes["sliding_attention"] == {"rope_type": "default"}


@pytest.mark.parametrize(
    "metadata",
    [
        {"type": "longrope", "attn_factor": 1.5},
        {"type": "spiral"},
        {"type": "yarn", "factor": 4.0, "yarn_log_multiplier": 2.0},
    ],
    ids=lambda metadata: metadata["type"],
)
def test_other_scalings_are_refused_by_name(tmp_path: Path, metadata: dict[str, Any]) -> None:
    file = file_with(tmp_path, {"rope_factors_short.weight": [1, 1.25]}, **metadata)
    with pytest.raises(CheckpointError, match=f"rope scaling '{metadata['type']}'"):
        add_rope_scaling({}, file)


def test_a_file_without_scaling_changes_nothing(tmp_path: Path) -> None:
    config: dict[str, Any] = {}
    add_rope_scaling(config, file_with(tmp_path, {"some.weight": [1.0]}, type="none"))
    assert config == {}
