"""Qwen2 and Qwen2.5: Llama with biases on Q, K and V, and optional windows in the upper layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.models import llama

MODEL_TYPE = "qwen2"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def architecture(config: read.Config) -> Architecture:
    """A `qwen2` config as an Architecture."""
    config = DEFAULTS | dict(config) | {"attention_bias": False, "mlp_bias": False}
    decoder = llama.decoder(config)
    return replace(
        decoder,
        windows=read.windows_by_layer_type(config),
        weights=llama.with_bias(decoder.weights, "q", "k", "v"),
    )
