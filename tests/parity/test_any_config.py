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
from model_families import FAMILIES, NEVER_TIED
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

# What may vary besides the sizes, by family.
OPTIONS: dict[str, dict[str, list[Any]]] = {
    "bloom": {},
    "cohere": {**BIAS, **ROPES, "use_qk_norm": [False, True]},
    "cohere2": {**BIAS, **PATTERN},
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
    "gemma4_unified_text": {
        **BIAS,
        **PATTERN,
        "attention_k_eq_v": [False, True],
        "num_global_key_value_heads": [None, 1],
    },
    "gpt2": {"scale_attn_weights": [False, True]},
    "gpt_neox": {**BIAS, "use_parallel_residual": [False, True]},
    "gptj": {"rotary_dim": [2, 4, 8]},
    "granite": {**BIAS, **ROPES, "residual_multiplier": [0.3, 1.0], "mlp_bias": [False, True]},
    "llama": {**BIAS, **ROPES, "mlp_bias": [False, True]},
    "mistral": {**WINDOW, **ROPES},
    "mixtral": {**WINDOW, "num_local_experts": [2, 6]},
    "olmo2": {**BIAS, **ROPES},
    "opt": {"do_layer_norm_before": [False, True], "word_embed_proj_dim": [None, 10]},
    "phi": {**PARTIAL, "qk_layernorm": [False, True]},
    "phi3": {**PARTIAL, **WINDOW},
    "qwen2": {**ROPES, **WINDOWS_BY_LAYER},
    "qwen3": {**BIAS, **ROPES, **WINDOWS_BY_LAYER},
    "qwen3_moe": {**BIAS, **ROPES, "norm_topk_prob": [False, True]},
    "smollm3": {**BIAS, **ROPES, "no_rope_layer_interval": [1, 2, 3]},
    "stablelm": {
        **PARTIAL,
        "use_qkv_bias": [False, True],
        "qk_layernorm": [False, True],
        "use_parallel_residual": [False, True],
    },
}
ONE_KEY_A_QUERY = ("bloom", "gpt2", "gpt_neox", "gptj", "opt")
OWN_HEAD_SIZE = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "mixtral", "qwen3")


@st.composite
def models(draw: st.DrawFn) -> tuple[str, dict[str, Any], int, int]:
    """A family, the fields of its config, and numbers of layers and of query heads."""
    family = draw(st.sampled_from(sorted(OPTIONS)))
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * (1 if family in ONE_KEY_A_QUERY else draw(st.integers(1, 3)))
    head_dim, layers = draw(st.sampled_from([8, 16])), draw(st.integers(1, 3))
    hidden, columns = heads * head_dim, draw(st.integers(5, 70))
    fields: dict[str, Any] = {"initializer_range": 0.2, "vocab_size": draw(st.integers(31, 90))}
    if family in ("gpt2", "gptj"):
        fields |= {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_inner": columns}
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
    for name, values in OPTIONS[family].items():
        fields[name] = draw(st.sampled_from(values))
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
