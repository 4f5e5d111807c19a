"""Each family's tiny configuration: what the tests of all families are run with."""

from __future__ import annotations

import copy
from typing import Any

import transformers
from transformers_families import transformers_config

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
WIDE: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# Not tied: a tiny one that is, with its embedding scaled, repeats what it reads.
GEMMA: dict[str, Any] = LLAMA | {
    "head_dim": 12,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
GRANITE_MOE: dict[str, Any] = LLAMA | {
    "intermediate_size": 35,
    "num_local_experts": 5,
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.5,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
}

# The family's name -> its configuration class and the fields that make it tiny.
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "aria_text": (
        transformers.AriaTextConfig,
        LLAMA | {"intermediate_size": 35, "moe_num_experts": 5},
    ),
    "bloom": (
        transformers.BloomConfig,
        WIDE | {"n_layer": 4, "n_head": 6, "seq_length": 128, "tie_word_embeddings": False},
    ),
    "cohere": (
        transformers.CohereConfig,
        LLAMA | {"logit_scale": 0.5, "tie_word_embeddings": False},
    ),
    "cohere2": (
        transformers.Cohere2Config,
        LLAMA
        | {
            "logit_scale": 0.5,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "tie_word_embeddings": False,
        },
    ),
    "falcon": (
        transformers.FalconConfig,
        WIDE
        | {
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_kv_heads": 3,
            "ffn_hidden_size": 83,
            "new_decoder_architecture": True,
            "max_position_embeddings": 128,
            "tie_word_embeddings": False,
        },
    ),
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
    "gpt_neox": (
        transformers.GPTNeoXConfig,
        LLAMA | {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e4}},
    ),
    "gpt_oss": (
        transformers.GptOssConfig,
        LLAMA
        | {
            "head_dim": 12,
            "intermediate_size": 35,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": 6,
            "swiglu_limit": 1.5,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 8.0,
                "truncate": False,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "gptj": (transformers.GPTJConfig, GPT2 | {"rotary_dim": 4, "initializer_range": 0.3}),
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
    "granitemoe": (transformers.GraniteMoeConfig, GRANITE_MOE),
    "granitemoeshared": (
        transformers.GraniteMoeSharedConfig,
        GRANITE_MOE | {"shared_intermediate_size": 41},
    ),
    "llama": (transformers.LlamaConfig, LLAMA),
    "llama4_text": (
        transformers.Llama4TextConfig,
        LLAMA
        | {
            "head_dim": 12,
            "intermediate_size": 35,
            "intermediate_size_mlp": 83,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "moe_layers": [1, 2, 3],
            "no_rope_layer_interval": 3,
            "attention_chunk_size": 7,
            "floor_scale": 5,
            "attn_scale": 0.3,
        },
    ),
    "mistral": (transformers.MistralConfig, LLAMA | {"sliding_window": 64}),
    "lfm2": (
        transformers.Lfm2Config,
        LLAMA
        | {
            "layer_types": ["conv", "full_attention", "conv", "conv"],
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": False,
        },
    ),
    "mixtral": (transformers.MixtralConfig, LLAMA | {"num_local_experts": 5}),
    "olmo2": (transformers.Olmo2Config, LLAMA),
    "opt": (
        transformers.OPTConfig,
        WIDE
        | {
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "ffn_dim": 83,
            "max_position_embeddings": 128,
            "init_std": 0.3,
            "tie_word_embeddings": False,
        },
    ),
    "phi": (transformers.PhiConfig, LLAMA),
    "phi3": (transformers.Phi3Config, LLAMA),
    "qwen2": (transformers.Qwen2Config, LLAMA),
    "qwen3": (transformers.Qwen3Config, LLAMA | {"head_dim": 12}),
    "qwen3_moe": (
        transformers.Qwen3MoeConfig,
        LLAMA
        | {
            "head_dim": 12,
            "moe_intermediate_size": 35,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
        },
    ),
    "smollm3": (
        transformers.SmolLM3Config,
        LLAMA | {"no_rope_layer_interval": 2, "tie_word_embeddings": False},
    ),
    "stablelm": (transformers.StableLmConfig, LLAMA | {"partial_rotary_factor": 0.5}),
}


NEVER_TIED = ("gptj", "phi")  # their heads have biases, which no embedding has


def tiny_config(family: str, **fields: Any) -> Any:
    """The family's configuration in Transformers, these fields replaced.

    A model on the Transformers backend is called by its model_type.
    """
    if family not in FAMILIES:
        return transformers_config(family, **fields)
    kind, sizes = FAMILIES[family]
    return kind(**(copy.deepcopy(sizes) | copy.deepcopy(fields)))


TEXT: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 83,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 48,
    "initializer_range": 0.3,
}
MODERN: dict[str, Any] = TEXT | {
    "local_attention": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "cls_token_id": 1,
    "sep_token_id": 1,
}
# What the classes of an encoder's family are called, its configuration class and fields.
ENCODERS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "bert": ("Bert", transformers.BertConfig, TEXT),
    "roberta": ("Roberta", transformers.RobertaConfig, TEXT | {"pad_token_id": 1}),
    "xlm-roberta": ("XLMRoberta", transformers.XLMRobertaConfig, TEXT | {"pad_token_id": 1}),
    "camembert": ("Camembert", transformers.CamembertConfig, TEXT | {"pad_token_id": 1}),
    "distilbert": (
        "DistilBert",
        transformers.DistilBertConfig,
        {
            "vocab_size": 131,
            "dim": 48,
            "hidden_dim": 83,
            "n_layers": 4,
            "n_heads": 6,
            "max_position_embeddings": 48,
            "initializer_range": 0.3,
        },
    ),
    "electra": ("Electra", transformers.ElectraConfig, TEXT | {"embedding_size": 28}),
    "electra-wide": ("Electra", transformers.ElectraConfig, TEXT | {"embedding_size": 48}),
    "modernbert": ("ModernBert", transformers.ModernBertConfig, MODERN),
    "modernbert-biased": (
        "ModernBert",
        transformers.ModernBertConfig,
        MODERN
        | {
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "classifier_bias": True,
            "classifier_pooling": "mean",
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
}
ENCODER_HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification")


def encoder_config(family: str, head: str, **fields: Any) -> dict[str, Any]:
    """A config.json of an encoder with this head."""
    name, kind, sizes = ENCODERS[family]
    return kind(**(sizes | fields), architectures=[name + head]).to_dict()


SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 131,
    "d_model": 48,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 83,
    "decoder_ffn_dim": 70,
    "max_position_embeddings": 64,
    "init_std": 0.3,
    "decoder_start_token_id": 7,
    "bos_token_id": None,
    "eos_token_id": None,
    "forced_eos_token_id": None,
    "tie_word_embeddings": False,  # tied, a tiny one repeats what it reads
}
T5: dict[str, Any] = {
    "vocab_size": 131,
    "d_model": 48,
    "d_kv": 10,
    "d_ff": 83,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 6,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "initializer_factor": 1.5,
    "decoder_start_token_id": 0,
    "eos_token_id": None,
}
# Configuration class and fields of each encoder-decoder.
ENCODER_DECODERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bart": (transformers.BartConfig, SEQ2SEQ),
    "m2m_100": (transformers.M2M100Config, SEQ2SEQ),
    "marian": (transformers.MarianConfig, SEQ2SEQ | {"pad_token_id": 130}),
    "mbart": (transformers.MBartConfig, SEQ2SEQ),
    "mt5": (transformers.MT5Config, T5),
    "pegasus": (transformers.PegasusConfig, SEQ2SEQ),
    "t5": (transformers.T5Config, T5),
}


def encoder_decoder_config(family: str, **fields: Any) -> Any:
    """The family's configuration in Transformers, these fields replaced."""
    kind, sizes = ENCODER_DECODERS[family]
    return kind(**(sizes | fields))
