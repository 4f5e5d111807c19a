"""GPT-NeoX, Pythia: layer norm, biases, Q K V fused by head, partial rope, one sum per layer."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.rope import max_positions, partial_dims, read_rope
from skynet.architecture.ties import tie
from skynet.architecture.weight import Weight

MODEL_TYPE = "gpt_neox"

DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "attention_bias": True,
    "rotary_pct": 0.25,
}

LAYER = "gpt_neox.layers.{layer}."
QKV: dict[str, Any] = {"fused": ("q", "k", "v"), "by_group": True}
WEIGHTS = (
    Weight("embed", "gpt_neox.embed_in", "vocab", "vocab"),
    Weight("attn_norm", LAYER + "input_layernorm", "replicated", "hidden", bias=True),
    Weight("mlp_norm", LAYER + "post_attention_layernorm", "replicated", "hidden", bias=True),
    Weight("up", LAYER + "mlp.dense_h_to_4h", "column", "columns", bias=True),
    Weight("down", LAYER + "mlp.dense_4h_to_h", "row", "columns", bias=True),
    Weight("final_norm", "gpt_neox.final_layer_norm", "replicated", "hidden", bias=True),
    Weight("head", "embed_out", "vocab", "vocab"),
)


def architecture(config: read.Config) -> Architecture:
    """A `gpt_neox` config as an Architecture."""
    config = DEFAULTS | dict(config)
    if config.get("rotary_emb_base") is not None:
        config.setdefault("rope_theta", config["rotary_emb_base"])
    head_dim = read.head_dim(config, "hidden_size", "num_attention_heads")
    rope = read_rope(config, partial_dims(config, head_dim, "rotary_pct"))
    layers, tied = read.size(config, "num_hidden_layers"), bool(config["tie_word_embeddings"])
    return Architecture(
        model_type=MODEL_TYPE,
        hidden_size=read.size(config, "hidden_size"),
        num_layers=layers,
        num_heads=read.size(config, "num_attention_heads"),
        num_kv_heads=read.size(config, "num_attention_heads"),
        head_dim=head_dim,
        intermediate_size=read.size(config, "intermediate_size"),
        vocab_size=read.size(config, "vocab_size"),
        max_positions=max_positions(rope, read.size(config, "max_position_embeddings")),
        norm="layer",
        norm_eps=float(config["layer_norm_eps"]),
        activation=read.activation(config, "hidden_act"),
        gated=False,
        ropes=(rope,) * layers,
        learned_positions=False,
        windows=(None,) * layers,
        attention_scale=head_dim**-0.5,
        parallel=bool(config["use_parallel_residual"]),
        weights=tie(WEIGHTS, tied) + _attention(bool(config["attention_bias"])),
        prefixes=("gpt_neox.", ""),
    )


def _attention(bias: bool) -> tuple[Weight, ...]:
    fused = LAYER + "attention.query_key_value"
    return (
        Weight("q", fused, "column", "heads", bias, **QKV),
        Weight("k", fused, "column", "kv_heads", bias, **QKV),
        Weight("v", fused, "column", "kv_heads", bias, **QKV),
        Weight("o", LAYER + "attention.dense", "row", "heads", bias),
    )
