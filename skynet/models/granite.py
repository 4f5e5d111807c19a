"""Granite 3 (dense): Llama with multipliers for embedding, attention, residual and logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Weight
from skynet.models import llama

MODEL_TYPE = "granite"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}


def architecture(config: read.Config) -> Architecture:
    """A `granite` config as an Architecture."""
    return decoder(DEFAULTS | dict(config))


def decoder(config: read.Config, weights: tuple[Weight, ...] = llama.WEIGHTS) -> Architecture:
    """The architecture shared with mixtures of experts; `config` has all defaults."""
    return replace(
        llama.decoder(config, weights=weights),
        embed_scale=float(config["embedding_multiplier"]),
        attention_scale=float(config["attention_multiplier"]),
        residual_scale=float(config["residual_multiplier"]),
        logit_scale=1 / float(config["logits_scaling"]),
    )
