"""OPT: learned positions, biases, layer norms before or, in OPT-350m, after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.ties import tie
from skynet.architecture.weight import Weight

MODEL_TYPE = "opt"

DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "activation_function": "relu",
    "enable_bias": True,
    "tie_word_embeddings": True,
}
REFUSED: dict[str, Any] = {"layer_norm_elementwise_affine": True}
POSITION_OFFSET = 2  # unused rows at the start of the position table
NORM_EPS = 1e-5  # not a field of the config

LAYER = "model.decoder.layers.{layer}."
ENDS = (
    Weight("embed", "model.decoder.embed_tokens", "vocab", "vocab"),
    Weight("positions", "model.decoder.embed_positions", "replicated", "positions"),
    Weight("head", "lm_head", "vocab", "vocab"),
)
PRODUCTS = (
    Weight("q", LAYER + "self_attn.q_proj", "column", "heads"),
    Weight("k", LAYER + "self_attn.k_proj", "column", "kv_heads"),
    Weight("v", LAYER + "self_attn.v_proj", "column", "kv_heads"),
    Weight("o", LAYER + "self_attn.out_proj", "row", "heads"),
    Weight("up", LAYER + "fc1", "column", "columns"),
    Weight("down", LAYER + "fc2", "row", "columns"),
)
PROJECTIONS = (
    Weight("project_in", "model.decoder.project_in", "replicated", "hidden"),
    Weight("project_out", "model.decoder.project_out", "replicated", "hidden"),
)


def architecture(config: read.Config) -> Architecture:
    """An `opt` config as an Architecture."""
    config = DEFAULTS | dict(config)
    hidden, layers = read.size(config, "hidden_size"), read.size(config, "num_hidden_layers")
    head_dim = read.head_dim(config, "hidden_size", "num_attention_heads")
    embed, tied = config.get("word_embed_proj_dim") or hidden, bool(config["tie_word_embeddings"])
    weights = tie(ENDS, tied) + _norms(config) + _products(config)
    weights += PROJECTIONS if embed != hidden else ()
    return Architecture(
        model_type=MODEL_TYPE,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=read.size(config, "num_attention_heads"),
        num_kv_heads=read.size(config, "num_attention_heads"),
        head_dim=head_dim,
        intermediate_size=read.size(config, "ffn_dim"),
        vocab_size=read.size(config, "vocab_size"),
        max_positions=read.size(config, "max_position_embeddings"),
        norm="layer",
        norm_eps=NORM_EPS,
        activation=read.activation(config, "activation_function"),
        gated=False,
        ropes=(None,) * layers,
        learned_positions=True,
        windows=(None,) * layers,
        attention_scale=head_dim**-0.5,
        embed_size=embed,
        position_offset=POSITION_OFFSET,
        weights=weights,
        prefixes=("model.decoder.", "decoder.", ""),
    )


def _norms(config: read.Config) -> tuple[Weight, ...]:
    before = bool(config["do_layer_norm_before"])
    place = "norm" if before else "sum_norm"
    names = {
        f"attn_{place}": LAYER + "self_attn_layer_norm",
        f"mlp_{place}": LAYER + "final_layer_norm",
    }
    if before and not config.get("_remove_final_layer_norm"):
        names["final_norm"] = "model.decoder.final_layer_norm"
    return tuple(
        Weight(role, name, "replicated", "hidden", bias=True) for role, name in names.items()
    )


def _products(config: read.Config) -> tuple[Weight, ...]:
    bias = bool(config["enable_bias"])
    return tuple(replace(weight, bias=bias) for weight in PRODUCTS)
