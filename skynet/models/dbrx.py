"""DBRX: a mixture of experts in every layer, layer norms, Q K V fused and clipped.

`attn_config` with another `rope_theta` than the config's, which Transformers computes with
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture, Weight
from skynet.architecture.packed import Packed
from skynet.errors import UnsupportedModel
from skynet.models import llama

MODEL_TYPE = "dbrx"

DEFAULTS: dict[str, Any] = {
    "max_seq_len": 2048,
    "tie_word_embeddings": False,
}
ATTENTION_DEFAULTS: dict[str, Any] = {"kv_n_heads": 1}
MLP_DEFAULTS: dict[str, Any] = {
    "ffn_hidden_size": 3584,
    "moe_num_experts": 4,
    "moe_top_k": 1,
    "moe_normalize_expert_weights": 1.0,
}
REFUSED: dict[str, Any] = {"tie_word_embeddings": False}
NORM_EPS = 1e-5  # not a field of the config

LAYER = "transformer.blocks.{layer}."
ATTENTION = LAYER + "norm_attn_norm.attn."
EXPERTS = LAYER + "ffn.experts.mlp."
QKV: dict[str, Any] = {"fused": ("q", "k", "v")}
WEIGHTS = (
    Weight("embed", "transformer.wte", "vocab", "vocab"),
    Weight("attn_norm", LAYER + "norm_attn_norm.norm_1", "replicated", "hidden"),
    Weight("q", ATTENTION + "Wqkv", "column", "heads", **QKV),
    Weight("k", ATTENTION + "Wqkv", "column", "kv_heads", **QKV),
    Weight("v", ATTENTION + "Wqkv", "column", "kv_heads", **QKV),
    Weight("o", ATTENTION + "out_proj", "row", "heads"),
    Weight("mlp_norm", LAYER + "norm_attn_norm.norm_2", "replicated", "hidden"),
    Weight("router", LAYER + "ffn.router.layer", "replicated", "experts"),
    Weight("gate", EXPERTS + "{piece}.w1", "column", "columns", packed=Packed(EXPERTS + "w1")),
    Weight("up", EXPERTS + "{piece}.v1", "column", "columns", packed=Packed(EXPERTS + "v1")),
    Weight(
        "down",
        EXPERTS + "{piece}.w2",
        "row",
        "columns",
        packed=Packed(EXPERTS + "w2", transposed=True),
    ),
    Weight("final_norm", "transformer.norm_f", "replicated", "hidden"),
    Weight("head", "lm_head", "vocab", "vocab"),
)


def architecture(config: read.Config) -> Architecture:
    """A `dbrx` config as an Architecture."""
    config = DEFAULTS | dict(config)
    attention = ATTENTION_DEFAULTS | dict(config.get("attn_config") or {})
    mlp = MLP_DEFAULTS | dict(config.get("ffn_config") or {})
    decoder = llama.decoder(_llama_names(config, attention, mlp), weights=WEIGHTS)
    _check_theta(decoder, attention)
    norm = mlp["moe_normalize_expert_weights"]
    if norm not in (None, 1):
        raise UnsupportedModel(f"dbrx with moe_normalize_expert_weights={norm!r} is not supported")
    counts = {"moe_num_experts": mlp["moe_num_experts"], "num_experts_per_tok": mlp["moe_top_k"]}
    return replace(
        decoder,
        norm="layer",
        qkv_clip=None if attention.get("clip_qkv") is None else read.cap(attention, "clip_qkv"),
        prefixes=("transformer.", ""),
        **read.experts(counts, "moe_num_experts", sum_to_one=norm is not None),
    )


def _llama_names(config: read.Config, attention: read.Config, mlp: read.Config) -> read.Config:
    activation = dict(mlp.get("ffn_act_fn") or {"name": "silu"})
    return {
        **{name: config[name] for name in ("rope_parameters", "rope_scaling") if name in config},
        "model_type": MODEL_TYPE,
        "hidden_size": read.size(config, "d_model"),
        "num_attention_heads": read.size(config, "n_heads"),
        "num_hidden_layers": read.size(config, "n_layers"),
        "num_key_value_heads": read.size(attention, "kv_n_heads"),
        "head_dim": read.head_dim(config, "d_model", "n_heads"),
        "intermediate_size": read.size(mlp, "ffn_hidden_size"),
        "vocab_size": read.size(config, "vocab_size"),
        "max_position_embeddings": read.size(config, "max_seq_len"),
        "rms_norm_eps": NORM_EPS,
        "hidden_act": activation.get("name", "silu"),
        "rope_theta": config.get("rope_theta") or 10_000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }


def _check_theta(decoder: Architecture, attention: read.Config) -> None:
    """Transformers 5 reads the config's rope; older files have it in `attn_config`."""
    (rope,), given = decoder.rope_kinds, attention.get("rope_theta")
    if given not in (None, rope.theta):
        raise UnsupportedModel(
            f"dbrx with attn_config rope_theta={given!r} and rope_parameters of rope_theta="
            f"{rope.theta!r} is not supported: Transformers computes with the latter; write the "
            "same into both"
        )
