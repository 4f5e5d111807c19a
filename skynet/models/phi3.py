"""Phi-3, Phi-3.5 and Phi-4: Llama with fused Q K V, fused gate and up, LongRoPE, partial rope."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Rope
from skynet.architecture.rope import kind_of, parameters, partial_dims, read_longrope, read_rope
from skynet.architecture.weight import Weight
from skynet.errors import UnsupportedModel
from skynet.models import llama

MODEL_TYPE = "phi3"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
LONGROPE_NAMES = ("longrope", "su", "yarn")  # names in old configs, all for LongRoPE

QKV: dict[str, Any] = {"fused": ("q", "k", "v")}
GATE_UP: dict[str, Any] = {"fused": ("gate", "up")}
FUSED = {
    "q": Weight("q", llama.LAYER + "self_attn.qkv_proj", "column", "heads", **QKV),
    "k": Weight("k", llama.LAYER + "self_attn.qkv_proj", "column", "kv_heads", **QKV),
    "v": Weight("v", llama.LAYER + "self_attn.qkv_proj", "column", "kv_heads", **QKV),
    "gate": Weight("gate", llama.LAYER + "mlp.gate_up_proj", "column", "columns", **GATE_UP),
    "up": Weight("up", llama.LAYER + "mlp.gate_up_proj", "column", "columns", **GATE_UP),
}
WEIGHTS = tuple(FUSED.get(weight.role, weight) for weight in llama.WEIGHTS)


def architecture(config: read.Config) -> Architecture:
    """A `phi3` config as an Architecture."""
    config = DEFAULTS | dict(config) | {"attention_bias": False, "mlp_bias": False}
    decoder = llama.decoder(config, _rope(config), WEIGHTS)
    window = read.window(config) if config.get("sliding_window") is not None else None
    return replace(decoder, windows=(window,) * decoder.num_layers)


def _rope(config: read.Config) -> Rope:
    head_dim = config.get("head_dim") or (
        read.size(config, "hidden_size") // read.size(config, "num_attention_heads")
    )
    dims, given = partial_dims(config, head_dim), parameters(config)
    if kind_of(given) in LONGROPE_NAMES:
        return read_longrope(config, dims, given)
    if kind_of(given) != "default":
        raise UnsupportedModel(
            f"phi3 with rope type {kind_of(given)!r} is not supported; known: default, longrope"
        )
    return read_rope(config, dims)
