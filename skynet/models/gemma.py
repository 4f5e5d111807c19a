"""Gemma 1: Llama with a scaled embedding, norm weights around zero, and GELU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.models import llama

MODEL_TYPE = "gemma"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
REFUSED: dict[str, Any] = {"use_bidirectional_attention": False}


def architecture(config: read.Config) -> Architecture:
    """A `gemma` config as an Architecture."""
    config = DEFAULTS | dict(config) | {"mlp_bias": False}
    if config["hidden_act"] == "gelu":  # old configs mean the approximation
        config["hidden_act"] = "gelu_pytorch_tanh"
    return scaled(llama.decoder(config))


def scaled(decoder: Architecture) -> Architecture:
    """The differences of all Gemmas from Llama."""
    return replace(decoder, norm_offset=1.0, embed_scale=decoder.hidden_size**0.5)
