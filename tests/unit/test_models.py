"""Configs as Transformers writes them, old and new, and the refusal of what is not computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from skynet.errors import CheckpointError, UnsupportedModel
from skynet.models import (
    KNOWN,
    checkpoint_dtype,
    load_architecture,
    resolve_names,
    staged_tensors,
)

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "vocab_size": 131,
    "max_position_embeddings": 64,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "vocab_size": 131,
    "n_positions": 64,
}
SLIDING: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}


def config(family: str, **fields: Any) -> dict[str, Any]:
    return (GPT2 if family == "gpt2" else LLAMA) | {"model_type": family} | fields


def hf_config(family: str, **fields: Any) -> Any:
    given = config(family, **fields)
    given.pop("model_type")
    return transformers.AutoConfig.for_model(family, **given)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("family", KNOWN)
def test_staged_tensors_are_the_checkpoints(family: str, biased: bool, tied: bool) -> None:
    # Given the model that Transformers builds of a config, without memory
    fields = {"attention_bias": biased, "mlp_bias": biased, "tie_word_embeddings": tied}
    made = hf_config(family, **fields)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(made)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if tied:
        del expected["lm_head.weight"]
    # When our architecture is read from the config that it saves
    staged = staged_tensors(load_architecture(made.to_dict()))
    # Then it needs the same tensors in the same shapes, each once
    assert {tensor.name: tensor.shape for tensor in staged} == expected
    assert len(staged) == len(expected)


def test_axes_follow_the_cut() -> None:
    # Given a fused, transposed family
    axes = {tensor.name: tensor.axis for tensor in staged_tensors(load_architecture(GPT2))}
    # Then a Conv1D is cut along its outputs in dim 1, or its inputs in dim 0
    assert axes["transformer.h.0.attn.c_attn.weight"] == 1
    assert axes["transformer.h.0.attn.c_proj.weight"] == 0
    assert axes["transformer.wte.weight"] == 0
    # And a Linear the other way around
    axes = {tensor.name: tensor.axis for tensor in staged_tensors(load_architecture(LLAMA))}
    assert axes["model.layers.2.self_attn.q_proj.weight"] == 0
    assert axes["model.layers.2.mlp.down_proj.weight"] == 1


def test_names_without_prefix_are_found() -> None:
    # Given GPT-2's names as on the hub, with buffers that nobody needs
    arch = load_architecture(GPT2)
    ours = [tensor.name for tensor in staged_tensors(arch)]
    available = [name.removeprefix("transformer.") for name in ours] + ["h.0.attn.bias"]
    # When they are resolved
    names = resolve_names(arch, available)
    # Then each of ours has one in the file
    assert names["transformer.h.1.ln_1.bias"] == "h.1.ln_1.bias"
    assert sorted(names) == sorted(ours)


def test_missing_tensors_are_named() -> None:
    # Given a checkpoint without one tensor
    arch = load_architecture(LLAMA)
    available = {tensor.name for tensor in staged_tensors(arch)} - {"model.norm.weight"}
    # When / Then the error names it
    with pytest.raises(CheckpointError, match=r"lacks 1 of the 30 tensors.*: model\.norm\.weight;"):
        resolve_names(arch, available)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_type": "mamba"}, "'mamba'.*gpt2, llama, mistral, qwen2, qwen3"),
        ({}, "None is not computed"),
        (config("llama", hidden_act="relu6"), "hidden_act='relu6'"),
        (config("llama", pretraining_tp=2), "pretraining_tp=2"),
        (config("llama", partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
        (config("llama", quantization_config={"quant_method": "gptq"}), "gptq"),
        (config("llama", rope_scaling={"type": "longrope"}), "'longrope'"),
        (config("llama", rope_scaling={"rope_type": "default", "mrope_section": [1]}), "mrope"),
        (config("llama", num_key_value_heads=4), "6 query heads do not share 4"),
        (config("llama", head_dim=7), "odd head_dim of 7"),
        (config("gpt2", scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse"),
        (config("gpt2", reorder_and_upcast_attn=True), "reorder_and_upcast_attn"),
        (config("gpt2", add_cross_attention=True), "add_cross_attention"),
        (config("mistral", layer_types=["full_attention"] * 3), "mistral with layer_types"),
        (config("qwen2", layer_types=["linear_attention"] * 3), "linear_attention"),
        (config("qwen3", layer_types=["sliding_attention"] * 3), "no sliding_window is in use"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    # When / Then
    with pytest.raises(UnsupportedModel, match=message):
        load_architecture(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_type": "llama"}, "hidden_size is None"),
        (config("llama", num_hidden_layers=0), "num_hidden_layers is 0"),
        (config("llama", rope_scaling={"type": "linear"}), "factor=None"),
        (config("qwen2", layer_types=["full_attention"]), "1 layer_types for 3 layers"),
    ],
)
def test_broken_configs_are_refused_by_field(given: dict[str, Any], message: str) -> None:
    # When / Then
    with pytest.raises(CheckpointError, match=message):
        load_architecture(given)


@pytest.mark.parametrize(
    ("family", "fields", "windows"),
    [
        ("llama", {"sliding_window": 8}, (None, None, None)),
        ("mistral", {"sliding_window": 8}, (8, 8, 8)),
        ("mistral", {"sliding_window": None}, (None, None, None)),
        ("mistral", {}, (4096, 4096, 4096)),
        ("qwen2", {"sliding_window": 8, "max_window_layers": 1}, (None, None, None)),
        ("qwen2", SLIDING, (None, None, 8)),
        ("qwen3", SLIDING | {"max_window_layers": 9}, (None, None, None)),
        (
            "qwen3",
            SLIDING | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
            (8, None, 8),
        ),
    ],
)
def test_windows(family: str, fields: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    # When / Then each layer's window is what Transformers uses
    assert load_architecture(config(family, **fields)).windows == windows


def test_old_and_new_rope_fields_mean_the_same() -> None:
    # Given one rope, as Transformers 4 and as 5 write it
    old = config("llama", rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    new = config("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})
    # When / Then both are read alike
    assert load_architecture(old) == load_architecture(new)


def test_dynamic_rope_allows_longer_sequences() -> None:
    # When / Then the positions are the stretched ones, the rope knows where stretching starts
    arch = load_architecture(config("llama", rope_scaling={"type": "dynamic", "factor": 2.0}))
    assert arch.rope is not None
    assert (arch.max_positions, arch.rope.original_positions) == (128, 64)


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"dtype": "bfloat16"}, "bfloat16"), ({"torch_dtype": "float16"}, "float16"), ({}, "float32")],
)
def test_checkpoint_dtype(fields: dict[str, Any], name: str) -> None:
    # When / Then new and old field are read
    assert checkpoint_dtype(fields) == name
