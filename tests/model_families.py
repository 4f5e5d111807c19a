"""Each family's tiny configuration: what the tests of all families are run with."""

from __future__ import annotations

import copy
from typing import Any

import transformers

# 6 query heads in 3 KV groups: 2 shards are uneven (4 + 2), 4 share a KV head, 6 share all.
LLAMA: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 83,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT2: dict[str, Any] = {
    "vocab_size": 131,
    "n_embd": 48,
    "n_layer": 4,
    "n_head": 6,
    "n_positions": 128,
    "n_inner": 83,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": None,
}
# Not tied: a tiny one that is, with its embedding scaled, repeats what it reads.
GEMMA: dict[str, Any] = LLAMA | {
    "head_dim": 12,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}

# The family's name -> its configuration class and the fields that make it tiny.
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gemma": (transformers.GemmaConfig, GEMMA),
    "gemma2": (
        transformers.Gemma2Config,
        GEMMA
        | {
            "sliding_window": 6,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3_text": (
        transformers.Gemma3TextConfig,
        GEMMA
        | {
            "sliding_window": 6,
            "query_pre_attn_scalar": 20,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gpt2": (transformers.GPT2Config, GPT2),
    "granite": (
        transformers.GraniteConfig,
        LLAMA
        | {
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.5,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
        },
    ),
    "llama": (transformers.LlamaConfig, LLAMA),
    "mistral": (transformers.MistralConfig, LLAMA | {"sliding_window": 64}),
    "olmo2": (transformers.Olmo2Config, LLAMA),
    "phi3": (transformers.Phi3Config, LLAMA),
    "qwen2": (transformers.Qwen2Config, LLAMA),
    "qwen3": (transformers.Qwen3Config, LLAMA | {"head_dim": 12}),
    "smollm3": (
        transformers.SmolLM3Config,
        LLAMA | {"no_rope_layer_interval": 2, "tie_word_embeddings": False},
    ),
    "stablelm": (transformers.StableLmConfig, LLAMA | {"partial_rotary_factor": 0.5}),
}


NEVER_TIED = ("gptj", "phi")  # their heads have biases, which no embedding has


def tiny_config(family: str, **fields: Any) -> Any:
    """The family's configuration in Transformers, these fields replaced."""
    kind, sizes = FAMILIES[family]
    return kind(**(copy.deepcopy(sizes) | copy.deepcopy(fields)))
