"""Model types for the Transformers backend: tiny configurations that run, and refused ones."""

from __future__ import annotations

from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# 6 query heads in 2 KV groups: 3 shards are uneven, and more than there are KV heads.
TINY: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 83,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
WINDOW: dict[str, Any] = {"sliding_window": 7}
WINDOWS: dict[str, Any] = WINDOW | {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
DYNAMIC: dict[str, Any] = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 6.0}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.3, 2.1, 2.5],
    "long_factor": [1.0, 5.0, 9.0, 20.0],
    "original_max_position_embeddings": 64,
}

EXPERTS: dict[str, Any] = {
    "num_experts": 5,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 21,
}
# Routed in groups, beside experts that all tokens have; the first layer has none.
GROUPS: dict[str, Any] = EXPERTS | {
    "n_routed_experts": 6,
    "num_experts": 6,
    "num_local_experts": 6,
    "n_shared_experts": 2,
    "num_shared_experts": 2,
    "n_group": 3,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
}

# Of those that run, what differs from `TINY`.
RUN: dict[str, dict[str, Any]] = {
    "afmoe": GROUPS,
    "apertus": {"rope_parameters": LLAMA3},
    "cohere_compass_text": {
        "logit_scale": 0.5,
        "rope_parameters": {
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 1, 1],
            },
            "full_attention": None,
        },
        **WINDOWS,
    },
    "cohere2_moe": EXPERTS,
    "cwm": {"bos_token_id": 1, "eos_token_id": -1, "rope_parameters": LLAMA3, **WINDOWS},
    "dots1": GROUPS | {"layer_types": ["full_attention"] * 3},
    "ernie4_5_moe": {
        "moe_num_experts": 5,
        "moe_k": 2,
        "moe_intermediate_size": 21,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
    },
    "exaone4": WINDOWS,
    "exaone_moe": GROUPS,
    "flex_olmo": EXPERTS,
    "glm4_moe": GROUPS,
    "hunyuan_v1_moe": EXPERTS | {"moe_topk": 2},
    "hy_v3": EXPERTS,
    "hyperclovax": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.5,
    },
    "kolibri1": GROUPS,
    "mellum": EXPERTS,
    "minimax_m2": EXPERTS,
    "ministral": WINDOW,
    "ministral3": WINDOW
    | {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "llama_4_scaling_beta": 0.1,
        }
    },
    "olmo": {"clip_qkv": 1.5},
    "olmo3": WINDOWS,
    "olmoe": EXPERTS,
    "phimoe": EXPERTS,
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 42},
    "solar_open": GROUPS,
    "starcoder2": WINDOW,
    "vaultgemma": WINDOWS | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
}
# Of those that are refused, what makes a configuration of them where `TINY` does not.
REFUSED: dict[str, dict[str, Any]] = {
    "dots3_note_text": {"num_hidden_layers": 2},
    "gemma3n_text": {"num_hidden_layers": 20},
}


def transformers_config(model_type: str, **fields: Any) -> Any:
    """Transformers' configuration of a model type that runs, these fields replaced."""
    return CONFIG_MAPPING[model_type](**(TINY | RUN.get(model_type, {}) | fields))


def refused_config(model_type: str) -> dict[str, Any]:
    """A config.json of one that does not."""
    config: dict[str, Any] = CONFIG_MAPPING[model_type](**REFUSED.get(model_type, TINY)).to_dict()
    return config
