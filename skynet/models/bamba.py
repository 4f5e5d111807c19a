"""Bamba: Mamba-2 in most layers, attention with rope on half of each head in the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.rope import parameters, read_rope
from skynet.architecture.weight import Weight
from skynet.models import llama, mamba2

MODEL_TYPE = "bamba"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    **mamba2.DEFAULTS,
    "num_key_value_heads": 8,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
    "attn_layer_indices": None,
}
LAYER = llama.LAYER
OUTSIDE = (
    Weight("embed", "model.embed_tokens", "vocab", "vocab"),
    Weight("final_norm", "model.final_layernorm", "replicated", "hidden"),
    Weight("head", "lm_head", "vocab", "vocab"),
)
# Of every layer.
MLP = (
    Weight("attn_norm", LAYER + "input_layernorm", "replicated", "hidden"),
    Weight("mlp_norm", LAYER + "pre_ff_layernorm", "replicated", "hidden"),
    Weight("gate", LAYER + "feed_forward.gate_proj", "column", "columns"),
    Weight("up", LAYER + "feed_forward.up_proj", "column", "columns"),
    Weight("down", LAYER + "feed_forward.down_proj", "row", "columns"),
)
ATTENTION = tuple(weight for weight in llama.WEIGHTS if weight.role in llama.ATTENTION)


def architecture(config: read.Config) -> Architecture:
    """A `bamba` config as an Architecture."""
    config = DEFAULTS | dict(config)
    heads = "num_attention_heads"
    head_dim = config.get("head_dim") or read.head_dim(config, "hidden_size", heads)
    factor = float(parameters(config).get("partial_rotary_factor", 0.5))
    rope = read_rope(config, int(head_dim * factor))
    base = llama.decoder(config, rope, OUTSIDE)
    mixer, dims = mamba2.mixer(config, config["mamba_expand"] * base.hidden_size)
    base = replace(base, dims=dims)
    attention = ATTENTION + MLP
    biased = (llama.ATTENTION if config["attention_bias"] else ()) + (
        llama.MLP if config["mlp_bias"] else ()
    )
    of_mixer = mamba2.weights(LAYER + "mamba.", mixer, **mamba2.biases(config))
    kinds = (
        replace(base, mixers=(mixer,), weights=llama.with_bias(of_mixer + MLP, *biased)),
        replace(base, weights=llama.with_bias(attention, *biased)),
    )
    chosen = config["attn_layer_indices"] or ()
    return base.with_kinds([kinds[layer in chosen] for layer in range(base.num_layers)])
