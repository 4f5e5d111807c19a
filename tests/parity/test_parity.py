"""The contract: the logits and tokens of Transformers, for any shape and span."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from harness import Request, cluster_of, generate, last_logits
from model_families import FAMILIES
from references import LONGROPE, NEW_TOKENS, PROMPTS, Reference

LAYER, STAGE = 1, 99
# Tokens of each answer: prompts and answers go on past the ends of small windows and ropes.
COMPARED = 16
# Stages, shards, layers per chord. 6 query heads in 3 KV groups: 2 shards are uneven (4 + 2), 4
# share a KV head.
SHAPES = [(1, 1, STAGE), (2, 2, LAYER), (2, 3, STAGE), (1, 4, STAGE)]
# Where a span may end depends on a layer's kind, which these families have one each of: two sums,
# one sum, norms after sums, norms on both sides, experts. A family of another kind belongs here.
KINDS = [
    *("llama", "gpt_neox", "olmo2", "gemma2", "mixtral", "lfm2"),
    *("bamba", "deepseek_v3", "gemma4_text", "gpt_oss", "nemotron_h", "qwen3_5_text"),
]
MORE_SHAPES = [
    (1, 1, LAYER),
    (1, 2, STAGE),
    (2, 1, LAYER),
    (2, 2, STAGE),
    (2, 3, LAYER),
]
# Rounding may choose another expert, which is far from close: where all are chosen it cannot.
ALL_EXPERTS = {
    "deepseek_v2": {"num_experts_per_tok": 6, "topk_group": 3},
    "deepseek_v3": {"num_experts_per_tok": 6, "topk_group": 3},
    "glm4_moe_lite": {"num_experts_per_tok": 6},
    "mistral4": {"num_experts_per_tok": 6, "topk_group": 3},
    "dbrx": {"moe_top_k": 5},
    "aria_text": {"moe_topk": 5},
    "gpt_oss": {"num_experts_per_tok": 5},
    "granitemoe": {"num_experts_per_tok": 5},
    "granitemoeshared": {"num_experts_per_tok": 5},
    "llama4_text": {"num_experts_per_tok": 5},
    "mixtral": {"num_experts_per_tok": 5},
    "qwen3_moe": {"num_experts_per_tok": 7},
    "lfm2_moe": {"num_experts_per_tok": 7},
    "nemotron_h": {"num_experts_per_tok": 6},
    "qwen3_next": {"num_experts_per_tok": 5},
    "qwen3_5_moe_text": {"num_experts_per_tok": 5},
}

ROPE: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.2, 1.5, 2.5],
        "long_factor": [1.0, 2.0, 5.0, 9.0],
        "original_max_position_embeddings": 64,
    },
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-attention-bias": ("llama", {"attention_bias": True}),
    "llama-mlp-bias": ("llama", {"mlp_bias": True}),
    "llama-of-two-ranks": ("llama", {"pretraining_tp": 2}),
    "llama-gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "llama-no-groups": ("llama", {"num_key_value_heads": 6}),
    # With some, prompts and answers go on past what the config says.
    **{
        f"llama-{kind}": (
            "llama",
            {"rope_parameters": rope}
            | ({"max_position_embeddings": 20} if kind in ("dynamic", "yarn") else {}),
        )
        for kind, rope in ROPE.items()
    },
    "qwen2-yarn": (
        "qwen2",
        {
            "rope_parameters": ROPE["yarn"] | {"original_max_position_embeddings": 16},
            "max_position_embeddings": 16,
        },
    ),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "qwen2-windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3-bias": ("qwen3", {"attention_bias": True, "head_dim": 10}),
    "qwen3-layer-types": (
        "qwen3",
        {
            "head_dim": 12,
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "stablelm-old-theta": ("stablelm", {"rope_theta": 500.0}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    "gpt_neox-tied": ("gpt_neox", {"tie_word_embeddings": True}),
    "phi-norms": ("phi", {"qk_layernorm": True, "num_key_value_heads": 6}),
    "cohere-norms": ("cohere", {"use_qk_norm": True, "attention_bias": True}),
    "falcon-7b": ("falcon", {"new_decoder_architecture": False, "tie_word_embeddings": True}),
    "falcon-one-norm": ("falcon", {"num_ln_in_parallel_attn": 1, "bias": True}),
    "falcon-rw": (
        "falcon",
        {
            "new_decoder_architecture": False,
            "multi_query": False,
            "num_kv_heads": 6,
            "parallel_attn": False,
            "alibi": True,
            "bias": True,
        },
    ),
    "falcon-alibi-groups": ("falcon", {"alibi": True}),
    "bloom-tied": ("bloom", {"tie_word_embeddings": True}),
    "bloom-of-four-ranks": ("bloom", {"pretraining_tp": 4}),
    "bloom-exact": ("bloom", {"slow_but_exact": True}),
    "bloom-eight-heads": ("bloom", {"n_head": 8}),
    "opt-350m": (
        "opt",
        {"do_layer_norm_before": False, "word_embed_proj_dim": 28, "tie_word_embeddings": True},
    ),
    "opt-no-bias": ("opt", {"enable_bias": False, "_remove_final_layer_norm": True}),
    "mixtral-window": (
        "mixtral",
        {"sliding_window": 7, "num_experts_per_tok": 1, "tie_word_embeddings": True},
    ),
    "qwen3_moe-shares": ("qwen3_moe", {"norm_topk_prob": False, "attention_bias": True}),
    "qwen3_moe-window": ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 6}),
    # Of 4 shards some have no value heads, and all share one key head.
    "qwen3_next-two-value-heads": (
        "qwen3_next",
        {
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 1,
            "attention_bias": True,
            "norm_topk_prob": False,
        },
    ),
    "qwen3_5-tied-yarn": (
        "qwen3_5_text",
        {
            "rope_parameters": ROPE["yarn"] | {"partial_rotary_factor": 0.5},
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "olmo_hybrid-no-rope": (
        "olmo_hybrid",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": None},
            "linear_allow_neg_eigval": False,
            "attention_bias": True,
        },
    ),
    "phi3-partial-window": ("phi3", {"partial_rotary_factor": 0.5, "sliding_window": 7}),
    "phi3-longrope": ("phi3", LONGROPE | {"original_max_position_embeddings": 64}),
    "phi3-longrope-long": ("phi3", LONGROPE | {"original_max_position_embeddings": 2}),
    "granite-bias": (
        "granite",
        {"attention_bias": True, "mlp_bias": True, "residual_multiplier": 0.3},
    ),
    "bamba-one-group": (
        "bamba",
        {
            "mamba_n_groups": 1,
            "mamba_n_heads": 3,
            "mamba_d_head": 32,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
        },
    ),
    "falcon_h1-norm": ("falcon_h1", {"mamba_rms_norm": True, "projectors_bias": True}),
    "falcon_h1-gate-first": (
        "falcon_h1",
        {
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "attention_in_multiplier": 0.9,
            "tie_word_embeddings": True,
        },
    ),
    "granitemoehybrid-attention": (
        "granitemoehybrid",
        {"layer_types": ["full_attention"] * 4, "position_embedding_type": "rope"},
    ),
    "granitemoehybrid-experts": (
        "granitemoehybrid",
        {"num_local_experts": 5, "intermediate_size": 35, "tie_word_embeddings": True},
    ),
    "nemotron_h-latent": (
        "nemotron_h",
        {"moe_latent_size": 20, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5},
    ),
    "nemotron_h-steps": ("nemotron_h", {"time_step_min": 0.5, "use_bias": True, "mlp_bias": True}),
    "olmo2-bias": ("olmo2", {"attention_bias": True}),
    "olmo2-one-kv-head": ("olmo2", {"num_key_value_heads": 1}),
    "smollm3-window": (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": 6, "tie_word_embeddings": True},
    ),
    "stablelm-parallel-norms": (
        "stablelm",
        {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True},
    ),
    "gemma-tied": ("gemma", {"tie_word_embeddings": True, "hidden_act": "gelu"}),
    "gemma2-uncapped": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3-linear": (
        "gemma3_text",
        {
            "final_logit_softcapping": 8.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "dbrx-shares": ("dbrx", {"moe_normalize_expert_weights": None, "kv_n_heads": 1}),
    "gpt_bigcode-heads": ("gpt_bigcode", {"multi_query": False, "tie_word_embeddings": True}),
    "gpt_neo-global": (
        "gpt_neo",
        {"attention_types": [[["global"], 4]], "intermediate_size": None},
    ),
    "mpt-tied": ("mpt", {"clip_qkv": None, "softmax_scale": 0.2, "tie_word_embeddings": True}),
    "mpt-eight-heads": ("mpt", {"n_heads": 8, "clip_qkv": 0.5}),
    "deepseek_v2-greedy": (
        "deepseek_v2",
        {"topk_method": "greedy", "first_k_dense_replace": 0, "attention_bias": True},
    ),
    "deepseek_v3-no-query-rank": (
        "deepseek_v3",
        {
            "q_lora_rank": None,
            "rope_interleave": False,
            "attention_bias": True,
            "norm_topk_prob": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "youtu-tied": ("youtu", {"tie_word_embeddings": True, "rope_interleave": False}),
    "gemma4-experts": (
        "gemma4_text",
        {
            "enable_moe_block": True,
            "num_experts": 5,
            "top_k_experts": 2,
            "moe_intermediate_size": 17,
            "num_kv_shared_layers": 1,
        },
    ),
    "gemma4-own-keys": (
        "gemma4_text",
        {
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "gemma4-small-groups": ("gemma4_text", {"num_global_key_value_heads": 1}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False}),
    "gpt2-unscaled": ("gpt2", {"scale_attn_weights": False, "activation_function": "relu"}),
}


def check(model_reference: Reference, stages: int, shards: int, span: int) -> None:
    """Logits of each prompt alone, then all prompts in one batch that they join one by one."""
    cluster = cluster_of(model_reference.checkpoint, stages, shards)
    try:
        for prompt, expected in zip(PROMPTS, model_reference.logits, strict=True):
            logits = last_logits(cluster, model_reference.checkpoint.arch, prompt, span)
            np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
        # The slots hold what the prompts above left there: nothing of it may be seen. Slots in
        # a row are computed in one call, slot 9 is not.
        requests = [
            Request(prompt, joins=3 * index, slot=slot)
            for index, (prompt, slot) in enumerate(zip(PROMPTS, (0, 1, 9), strict=True))
        ]
        tokens = generate(cluster, requests, COMPARED, span, chunk=5)
    finally:
        cluster.close()
    assert tokens == [answer[:COMPARED] for answer in model_reference.tokens]


@pytest.mark.parametrize(
    ("family", "stages", "shards", "span"),
    [
        (family, *shape)
        for family in FAMILIES
        for shape in SHAPES + (MORE_SHAPES if family in KINDS else [])
    ],
)
def test_a_family_in_every_shape(
    reference: Callable[..., Reference], family: str, stages: int, shards: int, span: int
) -> None:
    # Given a tiny random model and answers of Transformers, varied enough for a wrong one to show
    model_reference = reference(family)
    assert len({token for tokens in model_reference.tokens for token in tokens}) > 12
    # When it runs split / Then logits are close and greedy tokens equal
    check(model_reference, stages, shards, span)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant(reference: Callable[..., Reference], variant: str) -> None:
    # Given a model with a feature that few have
    family, fields = VARIANTS[variant]
    model_reference = reference(family, **fields)
    # When it runs split by layers, and by heads that share KV heads
    # Then logits are close and greedy tokens equal
    check(model_reference, 2, 4, LAYER)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_more_shards_than_kv_heads(reference: Callable[..., Reference], kv_heads: int) -> None:
    # Given a model with fewer KV heads than shards
    model_reference = reference("llama", num_key_value_heads=kv_heads)
    # When each query head has a shard / Then nothing changes
    check(model_reference, 1, 6, STAGE)


def test_mixed_neighbours_of_different_lengths(reference: Callable[..., Reference]) -> None:
    # Given requests in neighbouring slots whose lengths differ, computed in one masked call
    model_reference = reference("mistral", sliding_window=7)
    cluster = cluster_of(model_reference.checkpoint, 1, 2)
    requests = [Request(prompt, slot=3 + index) for index, prompt in enumerate(PROMPTS)]
    # When whole prompts are prefilled at once and decoded together
    try:
        tokens = generate(cluster, requests, NEW_TOKENS, STAGE, chunk=64)
    finally:
        cluster.close()
    # Then each answer is that of the request alone
    assert tokens == model_reference.tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_close(reference: Callable[..., Reference], family: str) -> None:
    # Given a plan in bfloat16 of a float32 checkpoint
    model_reference = reference(family, **ALL_EXPERTS.get(family, {}))
    cluster = cluster_of(model_reference.checkpoint, 2, 2, dtype="bfloat16")
    # When it computes a prompt
    try:
        logits = last_logits(cluster, model_reference.checkpoint.arch, PROMPTS[0], STAGE)
    finally:
        cluster.close()
    # Then the logits are those of float32 up to bfloat16's 8 bits
    expected = model_reference.logits[0]
    angle = logits @ expected / np.linalg.norm(logits) / np.linalg.norm(expected)
    assert angle > 0.99
    # And they are float32 numbers themselves, so that likely tokens do not tie
    made = torch.as_tensor(logits)
    assert not torch.equal(made, made.bfloat16().float())
