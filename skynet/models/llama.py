"""Llama 1 to 3, SmolLM and others: RMS norm, rope, gated MLP, grouped KV heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Rope
from skynet.architecture.rope import max_positions, read_rope, whole_head
from skynet.architecture.ties import tie
from skynet.architecture.weight import Weight
from skynet.errors import UnsupportedModel

MODEL_TYPE = "llama"

DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

LAYER = "model.layers.{layer}."
WEIGHTS = (
    Weight("embed", "model.embed_tokens", "vocab", "vocab"),
    Weight("attn_norm", LAYER + "input_layernorm", "replicated", "hidden"),
    Weight("q", LAYER + "self_attn.q_proj", "column", "heads"),
    Weight("k", LAYER + "self_attn.k_proj", "column", "kv_heads"),
    Weight("v", LAYER + "self_attn.v_proj", "column", "kv_heads"),
    Weight("o", LAYER + "self_attn.o_proj", "row", "heads"),
    Weight("mlp_norm", LAYER + "post_attention_layernorm", "replicated", "hidden"),
    Weight("gate", LAYER + "mlp.gate_proj", "column", "columns"),
    Weight("up", LAYER + "mlp.up_proj", "column", "columns"),
    Weight("down", LAYER + "mlp.down_proj", "row", "columns"),
    Weight("final_norm", "model.norm", "replicated", "hidden"),
    Weight("head", "lm_head", "vocab", "vocab"),
)
ATTENTION: tuple[str, ...] = ("q", "k", "v", "o")
MLP: tuple[str, ...] = ("gate", "up", "down")


def architecture(config: read.Config) -> Architecture:
    """A `llama` config as an Architecture."""
    return decoder(DEFAULTS | dict(config))


def decoder(
    config: read.Config, rope: Rope | None = None, weights: tuple[Weight, ...] = WEIGHTS
) -> Architecture:
    """The architecture shared by Llama and its many descendants; `config` has all defaults.

    rope: of all layers; read from the config by default.
    """
    hidden, heads = read.size(config, "hidden_size"), read.size(config, "num_attention_heads")
    layers = read.size(config, "num_hidden_layers")
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    if heads % kv_heads:
        raise UnsupportedModel(f"{heads} query heads cannot share {kv_heads} KV heads evenly")
    rope = rope or read_rope(config, whole_head(config, head_dim))
    weights = tie(weights, bool(config["tie_word_embeddings"]))
    biased = (ATTENTION if config["attention_bias"] else ()) + (MLP if config["mlp_bias"] else ())
    return Architecture(
        model_type=config["model_type"],
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=read.size(config, "intermediate_size"),
        vocab_size=read.size(config, "vocab_size"),
        max_positions=max_positions(rope, read.size(config, "max_position_embeddings")),
        norm="rms",
        norm_eps=float(config["rms_norm_eps"]),
        activation=read.activation(config, "hidden_act"),
        gated=True,
        ropes=(rope,) * layers,
        learned_positions=False,
        windows=(None,) * layers,
        attention_scale=head_dim**-0.5,
        weights=with_bias(weights, *biased),
        prefixes=("model.", ""),
    )


def with_bias(weights: tuple[Weight, ...], *roles: str) -> tuple[Weight, ...]:
    """The same weights, with biases for `roles`."""
    return tuple(
        replace(weight, bias=True) if weight.role in roles else weight for weight in weights
    )
