"""Llama 1 to 3, SmolLM and others: RMS norm, rope, gated MLP, grouped KV heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.errors import UnsupportedModel
from skynet.models import config as read
from skynet.models.architecture import Architecture, Weight

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
    config = DEFAULTS | dict(config)
    read.refuse(config, pretraining_tp=1)
    return decoder(config)


def decoder(config: read.Config) -> Architecture:
    """What Llama, Mistral and Qwen share; `config` has every default filled in."""
    hidden, heads = read.size(config, "hidden_size"), read.size(config, "num_attention_heads")
    layers = read.size(config, "num_hidden_layers")
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    if heads % kv_heads:
        raise UnsupportedModel(f"{heads} query heads do not share {kv_heads} KV heads evenly")
    rope, positions = read.rope(config, head_dim), read.size(config, "max_position_embeddings")
    if rope.kind == "dynamic":  # stretched past what it was trained on, by up to `factor`
        positions = int(positions * rope.factor)
    tied = bool(config["tie_word_embeddings"])
    weights = tuple(weight for weight in WEIGHTS if not (tied and weight.role == "head"))
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
        max_positions=positions,
        norm="rms",
        norm_eps=float(config["rms_norm_eps"]),
        activation=read.activation(config, "hidden_act"),
        gated=True,
        rope=rope,
        learned_positions=False,
        windows=(None,) * layers,
        qk_norm=False,
        tied=tied,
        attention_scale=head_dim**-0.5,
        weights=with_bias(weights, *biased),
        prefixes=("model.", ""),
    )


def with_bias(weights: tuple[Weight, ...], *roles: str) -> tuple[Weight, ...]:
    """The same weights, those of `roles` with a bias."""
    return tuple(
        replace(weight, bias=True) if weight.role in roles else weight for weight in weights
    )
