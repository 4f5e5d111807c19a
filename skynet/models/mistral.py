"""Mistral: Llama without biases, with a sliding window in every layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.errors import UnsupportedModel
from skynet.models import llama

MODEL_TYPE = "mistral"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "sliding_window": 4096,
}


def architecture(config: read.Config) -> Architecture:
    """A `mistral` config as an Architecture."""
    config = DEFAULTS | dict(config) | {"attention_bias": False, "mlp_bias": False}
    decoder = llama.decoder(config)
    sliding = config["sliding_window"] is not None
    # In Transformers all layers of Mistral are of one type; Ministral mixes them.
    expected = "sliding_attention" if sliding else "full_attention"
    if set(config.get("layer_types") or [expected]) != {expected}:
        raise UnsupportedModel(
            f"mistral with layer_types={config['layer_types']!r} is not supported, only all "
            f"{expected!r} with sliding_window={config['sliding_window']!r}"
        )
    window = read.window(config) if sliding else None
    return replace(decoder, windows=(window,) * decoder.num_layers)
