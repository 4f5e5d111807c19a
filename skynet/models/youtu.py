"""Youtu-LLM: latent attention with a dense MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.models import latent

MODEL_TYPE = "youtu"

DEFAULTS: dict[str, Any] = {
    **latent.DEFAULTS,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "rope_interleave": True,
}
REFUSED: dict[str, Any] = {"mlp_bias": False}


def architecture(config: read.Config) -> Architecture:
    """A `youtu` config as an Architecture."""
    config = DEFAULTS | dict(config)
    base, attention = latent.decoder(config, adjacent=latent.interleaved(config))
    return replace(base, weights=(*base.weights, *attention, *latent.MLP))
