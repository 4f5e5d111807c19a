"""LFM2: short convolutions in most layers, Qwen3's attention in the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.mixers import ShortConvolution
from skynet.architecture.weight import Dim, Weight
from skynet.models import llama

MODEL_TYPE = "lfm2"

DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "num_key_value_heads": 8,
    "max_position_embeddings": 128_000,
    "norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
}
# Names of older configs.
RENAMED = {"tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size"}
LAYER = llama.LAYER
NORMS = (
    Weight("attn_norm", LAYER + "operator_norm", "replicated", "hidden"),
    Weight("mlp_norm", LAYER + "ffn_norm", "replicated", "hidden"),
)
ATTENTION = (
    Weight("q", LAYER + "self_attn.q_proj", "column", "heads"),
    Weight("k", LAYER + "self_attn.k_proj", "column", "kv_heads"),
    Weight("v", LAYER + "self_attn.v_proj", "column", "kv_heads"),
    Weight("o", LAYER + "self_attn.out_proj", "row", "heads"),
    Weight("q_norm", LAYER + "self_attn.q_layernorm", "replicated", "head_dim"),
    Weight("k_norm", LAYER + "self_attn.k_layernorm", "replicated", "head_dim"),
)
GATES = ("conv_b", "conv_c", "conv_x")
MLP = (
    Weight("gate", LAYER + "feed_forward.w1", "column", "columns"),
    Weight("up", LAYER + "feed_forward.w3", "column", "columns"),
    Weight("down", LAYER + "feed_forward.w2", "row", "columns"),
)
OUTSIDE = (
    Weight("embed", "model.embed_tokens", "vocab", "vocab"),
    Weight("final_norm", "model.embedding_norm", "replicated", "hidden"),
    Weight("head", "lm_head", "vocab", "vocab"),
)


def architecture(config: read.Config) -> Architecture:
    """An `lfm2` config as an Architecture."""
    config = defaults(config)
    mlp = {"weights": MLP, "intermediate_size": _intermediate_size(config)}
    return decoder(config, mlp, [mlp] * config["num_hidden_layers"])


def defaults(config: read.Config) -> dict[str, Any]:
    """The config with all defaults, under current names."""
    renamed = {new: config[old] for old, new in RENAMED.items() if old in config}
    return {**DEFAULTS, **config, **renamed}


def decoder(
    config: dict[str, Any], mlp: dict[str, Any], mlps: Sequence[dict[str, Any]]
) -> Architecture:
    """The architecture shared by LFM2 and its mixture of experts.

    mlps: each layer's MLP: its weights, and other fields of `Architecture`.
    mlp: the one in whose columns plans divide the model.
    """
    config |= {"rms_norm_eps": config["norm_eps"]}
    base = llama.decoder(config, weights=OUTSIDE)
    sizes = {name: value for name, value in mlp.items() if name != "weights"}
    base = replace(base, dims={"channels": Dim(base.hidden_size)}, **sizes)
    mixer = ShortConvolution(read.size(config, "conv_L_cache"))
    convolution = convolution_weights(mixer.kernel, bool(config["conv_bias"]))
    kinds: dict[str, dict[str, Any]] = {
        "full_attention": {"qk_norm": "head", "weights": (*NORMS, *ATTENTION)},
        "conv": {"mixers": (mixer,), "weights": (*NORMS, *convolution)},
    }
    types = read.layer_types(config, tuple(kinds), _types(config))
    layers = []
    for kind, own in zip(types, mlps, strict=True):
        fields = own | kinds[kind]
        fields["weights"] += own["weights"]
        layers.append(replace(base, **fields))
    return base.with_kinds(layers)


def convolution_weights(kernel: int, bias: bool) -> tuple[Weight, ...]:
    """The weights of a layer's convolution."""
    projections = tuple(
        Weight(role, LAYER + "conv.in_proj", "column", "channels", bias=bias, fused=GATES)
        for role in GATES
    )
    return (
        *projections,
        Weight(
            "conv",
            LAYER + "conv.conv",
            "column",
            "channels",
            bias=bias,
            inner=(1, kernel),
            float32=True,
        ),
        Weight("conv_o", LAYER + "conv.out_proj", "row", "channels", bias=bias),
    )


def _types(config: read.Config) -> list[str]:
    """The layer types of a config that has none."""
    count = read.size(config, "num_hidden_layers")
    attention = config.get("full_attn_idxs")
    chosen = range(count) if attention is None else attention
    return ["full_attention" if layer in chosen else "conv" for layer in range(count)]


def _intermediate_size(config: read.Config) -> int:
    size = read.size(config, "intermediate_size")
    if not config["block_auto_adjust_ff_dim"]:
        return size
    size = int(2 * size / 3)
    if config["block_ffn_dim_multiplier"] is not None:
        unit = read.size(config, "block_multiple_of")
        size = -(-int(config["block_ffn_dim_multiplier"] * size) // unit) * unit
    return size
