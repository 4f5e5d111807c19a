"""MPT: ALiBi, layer norms, no biases, Q K V fused and clipped.

learned positions instead of ALiBi
"""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Alibi
from skynet.architecture.ties import tie
from skynet.architecture.weight import Weight

MODEL_TYPE = "mpt"

DEFAULTS: dict[str, Any] = {
    "max_seq_len": 2048,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
REFUSED: dict[str, Any] = {
    "expansion_ratio": 4,
    "logit_scale": None,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
}
# Of `attn_config`.
ATTENTION_REFUSED: dict[str, Any] = {
    "attn_type": "multihead_attention",
    "prefix_lm": False,
    "qk_ln": False,
    "attn_uses_sequence_id": False,
    "alibi": True,
    "alibi_bias_max": 8,
}

LAYER = "transformer.blocks.{layer}."
QKV: dict[str, Any] = {"fused": ("q", "k", "v")}
WEIGHTS = (
    Weight("embed", "transformer.wte", "vocab", "vocab"),
    Weight("attn_norm", LAYER + "norm_1", "replicated", "hidden"),
    Weight("q", LAYER + "attn.Wqkv", "column", "heads", **QKV),
    Weight("k", LAYER + "attn.Wqkv", "column", "kv_heads", **QKV),
    Weight("v", LAYER + "attn.Wqkv", "column", "kv_heads", **QKV),
    Weight("o", LAYER + "attn.out_proj", "row", "heads"),
    Weight("mlp_norm", LAYER + "norm_2", "replicated", "hidden"),
    Weight("up", LAYER + "ffn.up_proj", "column", "columns"),
    Weight("down", LAYER + "ffn.down_proj", "row", "columns"),
    Weight("final_norm", "transformer.norm_f", "replicated", "hidden"),
    Weight("head", "lm_head", "vocab", "vocab"),
)


def architecture(config: read.Config) -> Architecture:
    """An `mpt` config as an Architecture."""
    config = DEFAULTS | dict(config)
    attention = dict(config.get("attn_config") or {})
    read.refuse(attention | {"model_type": "mpt attn_config"}, **ATTENTION_REFUSED)
    hidden, layers = read.size(config, "d_model"), read.size(config, "n_layers")
    head_dim = read.head_dim(config, "d_model", "n_heads")
    scale = attention.get("softmax_scale")
    return Architecture(
        model_type=MODEL_TYPE,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=read.size(config, "n_heads"),
        num_kv_heads=read.size(config, "n_heads"),
        head_dim=head_dim,
        intermediate_size=4 * hidden,
        vocab_size=read.size(config, "vocab_size"),
        max_positions=read.size(config, "max_seq_len"),
        norm="layer",
        norm_eps=float(config["layer_norm_epsilon"]),
        activation="gelu",
        gated=False,
        ropes=(None,) * layers,
        learned_positions=False,
        windows=(None,) * layers,
        attention_scale=head_dim**-0.5 if scale is None else float(scale),
        alibi=Alibi(),
        qkv_clip=read.cap(attention, "clip_qkv") if attention.get("clip_qkv") else None,
        weights=tie(WEIGHTS, bool(config["tie_word_embeddings"])),
        prefixes=("transformer.", ""),
    )
