"""Each family's tiny configuration: what the tests of all families are run with."""

from __future__ import annotations

import copy
from typing import Any

import transformers
from transformers_families import transformers_config

# Transformers has Mistral 4's text model among models of images and text only.
transformers.AutoModelForCausalLM.register(
    transformers.Mistral4Config, transformers.Mistral4ForCausalLM, exist_ok=True
)
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
# 6 value heads, two of which a key head serves: 4 shards have parts of what a key head serves.
DELTA: dict[str, Any] = LLAMA | {
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 10,
    # Of a norm over outputs that may be close to zero, which it would make rounding of.
    "initializer_range": 0.2,
    "rms_norm_eps": 1e-3,
}
SHARED_MOE: dict[str, Any] = {
    "moe_intermediate_size": 35,
    "shared_expert_intermediate_size": 27,
    "num_experts": 5,
    "num_experts_per_tok": 3,
}
# KV heads by layer type, in groups that do not nest; the second half shares keys and values.
GEMMA4: dict[str, Any] = GEMMA | {
    "head_dim": 8,
    "global_head_dim": 12,
    "num_global_key_value_heads": 2,
    "attention_k_eq_v": True,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 8,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 10,
    "vocab_size_per_layer_input": 131,
    "final_logit_softcapping": 30.0,
}
GRANITE_MOE: dict[str, Any] = LLAMA | {
    "intermediate_size": 35,
    "num_local_experts": 5,
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.5,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
}


def _gpt_neo(num_hidden_layers: int = 4, **fields: Any) -> Any:
    """Windows in every other of any number of layers."""
    kinds = (["global", "local"] * num_hidden_layers)[:num_hidden_layers]
    return transformers.GPTNeoConfig(
        **{"num_layers": num_hidden_layers, "attention_types": [[kinds, 1]], **fields}
    )


def _dbrx(num_hidden_layers: int = 4, **fields: Any) -> Any:
    """Its sizes of attention and experts are fields of configs inside."""
    attention = {name: fields.pop(name) for name in ("clip_qkv", "kv_n_heads") if name in fields}
    mlp = {name: fields.pop(name) for name in [*fields] if name.startswith(("ffn_", "moe_"))}
    return transformers.DbrxConfig(
        n_layers=num_hidden_layers,
        attn_config=attention | {"rope_theta": 10_000.0},
        ffn_config=mlp,
        **fields | {"tie_word_embeddings": False},
    )


def _mpt(**fields: Any) -> Any:
    """`clip_qkv` and `softmax_scale` are fields of another config inside."""
    inner = {name: fields.pop(name) for name in ("clip_qkv", "softmax_scale") if name in fields}
    return transformers.MptConfig(attn_config=inner, **fields)


# 6 heads in 2 groups: 2 shards have a group each, 3 and more divide groups.
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
}
# Latent attention: queries and latents of low rank, keys wider than values, no KV groups.
LATENT: dict[str, Any] = LLAMA | {
    "num_key_value_heads": 6,
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 10,
    "v_head_dim": 14,
    "tie_word_embeddings": False,
}
# Experts in groups of two, a shared one twice their size, the first layer dense.
DEEPSEEK: dict[str, Any] = LATENT | {
    "moe_intermediate_size": 21,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "n_group": 3,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
MSCALE: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
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
    # Its heads are in four blocks: with 4 shards a block each, with 2 and 3 parts of them.
    "codegen": (
        transformers.CodeGenConfig,
        GPT2 | {"n_head": 8, "rotary_dim": 4, "initializer_range": 0.3},
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
    "dbrx": (
        _dbrx,
        {
            "vocab_size": 131,
            "d_model": 48,
            "n_heads": 6,
            "max_seq_len": 128,
            "kv_n_heads": 3,
            "clip_qkv": 2.0,
            "ffn_hidden_size": 35,
            "moe_num_experts": 5,
            "moe_top_k": 2,
            "initializer_range": 0.3,
        },
    ),
    "exaone": (transformers.ExaoneConfig, LLAMA),
    "deepseek_v2": (
        transformers.DeepseekV2Config,
        DEEPSEEK
        | {
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 1.7,
            "rope_parameters": MSCALE,
        },
    ),
    "deepseek_v3": (transformers.DeepseekV3Config, DEEPSEEK | {"rope_parameters": MSCALE}),
    "glm4_moe_lite": (
        transformers.Glm4MoeLiteConfig,
        DEEPSEEK
        | {
            "n_group": 1,
            "topk_group": 1,
            "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
        },
    ),
    "minicpm3": (transformers.MiniCPM3Config, LATENT | {"dim_model_base": 20}),
    "mistral4": (
        transformers.Mistral4Config,
        DEEPSEEK
        | {
            "first_k_dense_replace": 0,
            "rope_parameters": MSCALE
            | {"original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.3},
        },
    ),
    "youtu": (transformers.YoutuConfig, LATENT),
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
    "gpt_bigcode": (transformers.GPTBigCodeConfig, GPT2 | {"tie_word_embeddings": False}),
    "gpt_neo": (
        _gpt_neo,
        {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
        | {"window_size": 6, "tie_word_embeddings": False},
    ),
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
    "gemma4_text": (transformers.Gemma4TextConfig, GEMMA4),
    "gemma4_unified_text": (
        transformers.Gemma4UnifiedTextConfig,
        {
            field: value
            for field, value in GEMMA4.items()
            if "per_layer_input" not in field and field != "num_kv_shared_layers"
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
    "lfm2_moe": (
        transformers.Lfm2MoeConfig,
        LLAMA
        | {
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "num_dense_layers": 1,
            "moe_intermediate_size": 35,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "tie_word_embeddings": False,
        },
    ),
    "bamba": (transformers.BambaConfig, LLAMA | MAMBA | {"attn_layer_indices": [1]}),
    "falcon_h1": (
        transformers.FalconH1Config,
        LLAMA
        | MAMBA
        | {
            "mamba_d_ssm": 60,
            "mamba_d_head": 10,
            "embedding_multiplier": 3.0,
            "lm_head_multiplier": 0.4,
            "mlp_multipliers": [0.8, 0.6],
            "key_multiplier": 0.7,
            "attention_out_multiplier": 1.2,
            "ssm_multipliers": [0.7, 1.2, 0.9, 1.1, 0.8],
            "ssm_in_multiplier": 1.3,
            "ssm_out_multiplier": 0.7,
        },
    ),
    "granitemoehybrid": (
        transformers.GraniteMoeHybridConfig,
        LLAMA
        | MAMBA
        | {
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "shared_intermediate_size": 83,
            "num_local_experts": 0,
            "embedding_multiplier": 3.0,
            "logits_scaling": 2.5,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
        },
    ),
    "nemotron_h": (
        transformers.NemotronHConfig,
        {name: value for name, value in LLAMA.items() if name != "num_hidden_layers"}
        | {
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"],
            "head_dim": 12,
            "ssm_state_size": 8,
            "mamba_num_heads": 6,
            "mamba_head_dim": 12,
            "n_groups": 3,
            "moe_intermediate_size": 35,
            "moe_shared_expert_intermediate_size": 29,
            "n_routed_experts": 6,
            "num_experts_per_tok": 2,
        },
    ),
    "mixtral": (transformers.MixtralConfig, LLAMA | {"num_local_experts": 5}),
    "mpt": (
        _mpt,
        {
            "vocab_size": 131,
            "d_model": 48,
            "n_layers": 4,
            "n_heads": 6,
            "max_seq_len": 128,
            "clip_qkv": 3.0,
            "initializer_range": 0.3,
            "tie_word_embeddings": False,
        },
    ),
    "olmo2": (transformers.Olmo2Config, LLAMA),
    # Keys and values of equal width: Transformers divides the convolution in three equal parts.
    "olmo_hybrid": (
        transformers.OlmoHybridConfig,
        {name: value for name, value in DELTA.items() if name != "head_dim"}
        | {"linear_key_head_dim": 16, "linear_value_head_dim": 8},
    ),
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
    "qwen3_next": (
        transformers.Qwen3NextConfig,
        DELTA | SHARED_MOE | {"mlp_only_layers": [2]},
    ),
    "qwen3_5_moe_text": (
        transformers.Qwen3_5MoeTextConfig,
        {name: value for name, value in DELTA.items() if name != "intermediate_size"} | SHARED_MOE,
    ),
    "qwen3_5_text": (transformers.Qwen3_5TextConfig, DELTA),
    "smollm3": (
        transformers.SmolLM3Config,
        LLAMA | {"no_rope_layer_interval": 2, "tie_word_embeddings": False},
    ),
    "stablelm": (transformers.StableLmConfig, LLAMA | {"partial_rotary_factor": 0.5}),
}


# Heads with biases, which no embedding has, or that Transformers does not tie.
NEVER_TIED = ("codegen", "dbrx", "gptj", "phi", "nemotron_h")


def tiny_config(family: str, **fields: Any) -> Any:
    """The family's configuration in Transformers, these fields replaced.

    A model on the Transformers backend is called by its model_type.
    """
    if family not in FAMILIES:
        return transformers_config(family, **fields)
    kind, sizes = FAMILIES[family]
    return kind(**(copy.deepcopy(sizes) | copy.deepcopy(fields)))


OWN_TYPES = ("bamba", "falcon_h1", "nemotron_h")  # their configs take no `layer_types`


def short_config(family: str, **fields: Any) -> Any:
    """The family's configuration with two layers; of Nemotron-H with all of its."""
    types = FAMILIES[family][1].get("layer_types")
    chosen = {} if family in OWN_TYPES else {"layer_types": types and types[:2]}
    if family.startswith("gemma4"):
        chosen["num_kv_shared_layers"] = 0  # of each type one layer has keys
    return tiny_config(family, num_hidden_layers=2, **chosen, **fields)


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
DEBERTA: dict[str, Any] = TEXT | {
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "position_buckets": 8,
    "relative_attention": True,
    "share_att_key": True,
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
    "deberta-v2": ("DebertaV2", transformers.DebertaV2Config, DEBERTA),
    "deberta-v2-plain": (
        "DebertaV2",
        transformers.DebertaV2Config,
        DEBERTA
        | {
            "norm_rel_ebd": "none",
            "pos_att_type": ["c2p"],
            "position_buckets": -1,
            "max_relative_positions": 9,
            "position_biased_input": True,
            "type_vocab_size": 2,
        },
    ),
    "mpnet": ("MPNet", transformers.MPNetConfig, TEXT),
    "nomic_bert": ("NomicBert", transformers.NomicBertConfig, TEXT | {"pad_token_id": 0}),
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
