"""Random configurations of every family, in random shapes: the logits of Transformers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Cluster, cluster_of, full_logits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_families import FAMILIES, MSCALE, NEVER_TIED
from references import save_random_model

from skynet.wire.step import LogitsRequest, Row

PROMPT = [5, 6, 7, 30, 2, 9, 11, 3, 27, 1]
CHUNK = 4  # of the prompt that is computed first; then the rest but two tokens, then those

BIAS = {"attention_bias": [False, True]}
WINDOW = {"sliding_window": [None, 1, 3, 64]}
ROPES: dict[str, list[dict[str, Any]]] = {
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 500.0},
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ]
}
PARTIAL = {"partial_rotary_factor": [0.25, 0.5, 1.0]}
WINDOWS_BY_LAYER = {"use_sliding_window": [True], "sliding_window": [3], "max_window_layers": [1]}
PATTERN = {"sliding_window": [2, 5], "layer_types": [None]}
GEMMA2 = {**BIAS, **PATTERN, "query_pre_attn_scalar": [4, 30]}
MAMBA: dict[str, list[Any]] = {
    "mamba_n_heads": [4, 8],
    "mamba_n_groups": [1, 2, 4],
    "mamba_d_state": [8],
    "mamba_d_conv": [2, 4],
    "mamba_conv_bias": [False, True],
    "mamba_proj_bias": [False, True],
}

LATENT: dict[str, list[Any]] = {
    **BIAS,
    "q_lora_rank": [None, 13],
    "kv_lora_rank": [9, 32],
    "qk_rope_head_dim": [2, 8],
    "qk_nope_head_dim": [5, 12],
    "v_head_dim": [3, 16],
    "rope_parameters": [MSCALE, {"rope_type": "default", "rope_theta": 500.0}],
}
INTERLEAVED = {"rope_interleave": [False, True]}
MISTRAL4: dict[str, Any] = MSCALE | {
    "original_max_position_embeddings": 4,
    "llama_4_scaling_beta": 0.2,
}
DELTA = {
    **BIAS,
    "linear_num_key_heads": [1, 2],
    "linear_num_value_heads": [2, 6],
    "linear_key_head_dim": [4, 12],
    "linear_value_head_dim": [5, 16],
    "linear_conv_kernel_dim": [2, 4],
    "layer_types": [None],
    "full_attention_interval": [1, 2],
}

EXPERTS = {"num_local_experts": [2, 6], "num_experts_per_tok": [1, 2]}

# What may vary besides the sizes, by family.
OPTIONS: dict[str, dict[str, list[Any]]] = {
    "aria_text": {**BIAS, **ROPES, "moe_num_experts": [2, 6], "mlp_bias": [False, True]},
    "bloom": {},
    "codegen": {"rotary_dim": [2, 4, 8]},
    "cohere": {**BIAS, **ROPES, "use_qk_norm": [False, True]},
    "cohere2": {**BIAS, **PATTERN},
    "dbrx": {"clip_qkv": [1.0, 8.0], "moe_top_k": [1, 2], "moe_num_experts": [2, 5]},
    "exaone": {**BIAS, **ROPES, "mlp_bias": [False, True]},
    "deepseek_v2": {**LATENT, "topk_method": ["greedy", "group_limited_greedy"]},
    "deepseek_v3": {**LATENT, **INTERLEAVED, "norm_topk_prob": [False, True]},
    "glm4_moe_lite": {**LATENT, **INTERLEAVED, "n_group": [1], "topk_group": [1]},
    "minicpm3": {**LATENT, "dim_model_base": [None, 20], "scale_depth": [None, 1.4]},
    "mistral4": {**LATENT, **INTERLEAVED, "rope_parameters": [MISTRAL4]},
    "youtu": {**LATENT, **INTERLEAVED},
    "falcon": {
        "alibi": [False, True],
        "bias": [False, True],
        "num_ln_in_parallel_attn": [None, 1],
    },
    "gemma": BIAS,
    "gemma2": {**GEMMA2, "attn_logit_softcapping": [None, 3.0]},
    "gemma3_text": {**GEMMA2, "final_logit_softcapping": [None, 9.0]},
    "gemma4_text": {
        **BIAS,
        **PATTERN,
        "final_logit_softcapping": [None, 9.0],
        "num_kv_shared_layers": [0],  # more need layers of each type before them
        "num_global_key_value_heads": [None, 1],
        "attention_k_eq_v": [False, True],
        "hidden_size_per_layer_input": [0, 3, 16],
        "enable_moe_block": [False, True],
        "num_experts": [3],  # all chosen: rounding cannot choose others
        "top_k_experts": [3],
        "moe_intermediate_size": [13],
    },
    "gemma4_unified_text": {**BIAS, **PATTERN, "attention_k_eq_v": [False, True]},
    "gpt2": {"scale_attn_weights": [False, True]},
    "gpt_bigcode": {"multi_query": [False, True], "scale_attn_weights": [False, True]},
    "gpt_neo": {"window_size": [1, 3, 64]},
    "gpt_neox": {**BIAS, "use_parallel_residual": [False, True]},
    "gpt_oss": {**BIAS, **EXPERTS, "sliding_window": [2, 5], "swiglu_limit": [0.5, 7.0]},
    "gptj": {"rotary_dim": [2, 4, 8]},
    "granite": {**BIAS, **ROPES, "residual_multiplier": [0.3, 1.0], "mlp_bias": [False, True]},
    "bamba": {**BIAS, **MAMBA, "mlp_bias": [False, True], "attn_layer_indices": [None, [0], [1]]},
    "falcon_h1": {
        **MAMBA,
        "mamba_d_ssm": [64],
        "mamba_rms_norm": [False, True],
        "mamba_norm_before_gate": [False, True],
        "projectors_bias": [False, True],
        "mlp_multipliers": [None, [0.7, 1.3]],
        "ssm_multipliers": [[0.7, 1.2, 0.9, 1.1, 0.8]],
        "key_multiplier": [0.5],
        "attention_out_multiplier": [1.0, 0.6],
    },
    "granitemoehybrid": {
        **MAMBA,
        "num_local_experts": [0, 4],
        "shared_intermediate_size": [33],
        "position_embedding_type": ["rope", None],
    },
    "lfm2": {"conv_bias": [False, True], "conv_L_cache": [2, 3, 4]},
    "lfm2_moe": {
        "num_dense_layers": [0, 1],
        "moe_intermediate_size": [23],
        "num_experts": [3],
        "num_experts_per_tok": [2],
        "use_expert_bias": [False, True],
        "norm_topk_prob": [False, True],
    },
    "nemotron_h": {
        "mamba_num_heads": [4],
        "mamba_head_dim": [6],
        "n_groups": [1, 2, 4],
        "ssm_state_size": [8],
        "use_bias": [False, True],
        "time_step_min": [0.001, 0.5],
        "moe_intermediate_size": [23],
        "moe_shared_expert_intermediate_size": [9],
        "moe_latent_size": [None, 20],
        "n_routed_experts": [4],
        "num_experts_per_tok": [2],
        "n_group": [1, 2],
        "routed_scaling_factor": [1.0, 2.5],
    },
    "granitemoe": {**BIAS, **ROPES, **EXPERTS},
    "granitemoeshared": {**ROPES, **EXPERTS, "shared_intermediate_size": [0, 21]},
    "llama": {**BIAS, **ROPES, "mlp_bias": [False, True]},
    "llama4_text": {
        **ROPES,
        **EXPERTS,
        "attention_chunk_size": [3, None],
        "attn_temperature_tuning": [False, True],
        "floor_scale": [3],
        "interleave_moe_layer_step": [1, 2],
        "intermediate_size_mlp": [40],
        "no_rope_layer_interval": [2, 3],
        "use_qk_norm": [False, True],
    },
    "mistral": {**WINDOW, **ROPES},
    "mixtral": {**WINDOW, "num_local_experts": [2, 6]},
    "mpt": {"clip_qkv": [None, 1.0], "softmax_scale": [None, 0.3]},
    "olmo2": {**BIAS, **ROPES},
    "olmo_hybrid": {
        **BIAS,
        "linear_num_key_heads": [1],
        "linear_num_value_heads": [2],
        "linear_conv_kernel_dim": [2, 4],
        "linear_allow_neg_eigval": [False, True],
        "layer_types": [None],
    },
    "opt": {"do_layer_norm_before": [False, True], "word_embed_proj_dim": [None, 10]},
    "phi": {**PARTIAL, "qk_layernorm": [False, True]},
    "phi3": {**PARTIAL, **WINDOW},
    "qwen2": {**ROPES, **WINDOWS_BY_LAYER},
    "qwen3": {**BIAS, **ROPES, **WINDOWS_BY_LAYER},
    "qwen3_moe": {**BIAS, **ROPES, "norm_topk_prob": [False, True]},
    "qwen3_next": {**DELTA, "decoder_sparse_step": [1, 2], "norm_topk_prob": [False, True]},
    "qwen3_5_moe_text": DELTA,
    "qwen3_5_text": DELTA,
    "smollm3": {**BIAS, **ROPES, "no_rope_layer_interval": [1, 2, 3]},
    "stablelm": {
        **PARTIAL,
        "use_qkv_bias": [False, True],
        "qk_layernorm": [False, True],
        "use_parallel_residual": [False, True],
    },
}
OF_LATENTS = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "mistral4", "youtu")
WITH_DELTA_NETS = ("olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next")
ONE_KEY_A_QUERY = (
    *("bloom", "codegen", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "opt"),
    *OF_LATENTS,
)
# The field that has the type of each layer, and the types.
LAYER_TYPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "granitemoehybrid": ("layer_types", ("linear_attention", "full_attention")),
    "lfm2": ("layer_types", ("conv", "full_attention")),
    "lfm2_moe": ("layer_types", ("conv", "full_attention")),
    "nemotron_h": (
        "layers_block_type",
        ("linear_attention", "full_attention", "mlp", "moe"),
    ),
}
OWN_HEAD_SIZE = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "mixtral", "qwen3")
OWN_HEAD_SIZE += ("gpt_oss", "llama4_text")


@st.composite
def models(draw: st.DrawFn) -> tuple[str, dict[str, Any], int, int]:
    """A family, the fields of its config, and numbers of layers and of query heads."""
    family = draw(st.sampled_from(sorted(OPTIONS)))
    kv_heads = draw(st.integers(1, 3))
    kv_heads *= 4 if family == "codegen" else 1
    heads = kv_heads * (1 if family in ONE_KEY_A_QUERY else draw(st.integers(1, 3)))
    head_dim, layers = draw(st.sampled_from([8, 16])), draw(st.integers(1, 3))
    layers += family in WITH_DELTA_NETS  # Transformers wants one with attention
    hidden, columns = heads * head_dim, draw(st.integers(5, 70))
    fields: dict[str, Any] = {"initializer_range": 0.2, "vocab_size": draw(st.integers(31, 90))}
    if family in ("codegen", "gpt2", "gpt_bigcode", "gptj"):
        fields |= {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_inner": columns}
    elif family == "dbrx":
        fields |= {"d_model": hidden, "num_hidden_layers": layers, "n_heads": heads}
        fields |= {"kv_n_heads": kv_heads, "ffn_hidden_size": columns}
    elif family == "mpt":
        fields |= {"d_model": hidden, "n_layers": layers, "n_heads": heads}
    elif family == "bloom":
        fields |= {"hidden_size": hidden, "n_layer": layers, "n_head": heads}
    else:
        fields |= {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_kv_heads" if family == "falcon" else "num_key_value_heads": kv_heads,
            {"falcon": "ffn_hidden_size", "opt": "ffn_dim"}.get(
                family, "intermediate_size"
            ): columns,
        }
    if family in OWN_HEAD_SIZE:
        fields["head_dim"] = draw(st.sampled_from([head_dim, 12]))
    if family in LAYER_TYPES:
        field, types = LAYER_TYPES[family]
        fields[field] = draw(st.lists(st.sampled_from(types), min_size=layers, max_size=layers))
    if family == "glm4_moe_lite":
        fields["mlp_layer_types"] = draw(st.permutations(["dense", *["sparse"] * (layers - 1)]))
    for name, values in OPTIONS[family].items():
        fields[name] = draw(st.sampled_from(values))
    if family == "nemotron_h":
        del fields["num_hidden_layers"]  # those of its types
    fields["tie_word_embeddings"] = draw(st.booleans()) and family not in NEVER_TIED
    return family, fields, layers, heads


def test_every_family_has_options() -> None:
    # Given a family without any would not be drawn
    assert set(OPTIONS) == set(FAMILIES)


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(model=models(), data=st.data())
def test_any_config_in_any_shape(
    model: tuple[str, dict[str, Any], int, int], data: st.DataObject
) -> None:
    # Given a random model and what Transformers makes of a prompt
    family, fields, layers, heads = model
    with tempfile.TemporaryDirectory() as directory:
        made, checkpoint = save_random_model(family, fields, Path(directory))
    with torch.no_grad():
        expected = made(torch.tensor([PROMPT])).logits[0].numpy()
    # When it runs in any shape, the prompt in chunks, its last tokens one by one
    stages = data.draw(st.integers(1, layers), label="stages")
    shards = data.draw(st.integers(1, heads), label="shards")
    span = data.draw(st.integers(1, layers), label="layers per chord")
    cluster = cluster_of(checkpoint, stages, shards, num_slots=2, slot_tokens=len(PROMPT))
    try:
        logits_by_position = _logits(cluster, checkpoint.arch.vocab_size, span)
    finally:
        cluster.close()
    # Then the logits are the same, as far as float32 goes
    tolerance = 1e-4 * max(1.0, float(np.abs(expected).max()))
    for position, logits in logits_by_position.items():
        np.testing.assert_allclose(logits, expected[position], atol=tolerance, rtol=0)


def _logits(cluster: Cluster, vocab_size: int, span: int) -> dict[int, np.ndarray]:
    """By position, after each of the chunks."""
    count = len(PROMPT)
    logits = {}
    for start, stop in [(0, CHUNK), (CHUNK, count - 2), (count - 2, count - 1), (count - 1, count)]:
        row = Row(1, start, tuple(PROMPT[start:stop]), count, LogitsRequest(top=0))
        logits[stop - 1] = full_logits(cluster.step([row], span)[0], vocab_size)
    return logits
