"""Mixtral: Mistral with a mixture of experts as MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Weight
from skynet.models import llama

MODEL_TYPE = "mixtral"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1_000_000.0,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
}
EXPERT = llama.LAYER + "block_sparse_moe.experts.{piece}."
MIXTURE = {
    "gate": Weight("gate", EXPERT + "w1", "column", "columns"),
    "up": Weight("up", EXPERT + "w3", "column", "columns"),
    "down": Weight("down", EXPERT + "w2", "row", "columns"),
}
ROUTER = Weight("router", llama.LAYER + "block_sparse_moe.gate", "replicated", "experts")
WEIGHTS = (*(MIXTURE.get(weight.role, weight) for weight in llama.WEIGHTS), ROUTER)


def architecture(config: read.Config) -> Architecture:
    """A `mixtral` config as an Architecture."""
    config = DEFAULTS | dict(config) | {"attention_bias": False, "mlp_bias": False}
    decoder = llama.decoder(config, weights=WEIGHTS)
    window = read.window(config) if config.get("sliding_window") is not None else None
    return replace(
        decoder,
        windows=(window,) * decoder.num_layers,
        **read.experts(config, "num_local_experts"),
    )
