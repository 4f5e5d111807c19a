"""Gemma 4 unified (text): Gemma 4 without inputs of each layer."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.models import gemma4

MODEL_TYPE = "gemma4_unified_text"

DEFAULTS: dict[str, Any] = {
    **gemma4.DEFAULTS,
    "max_position_embeddings": 262_144,
    "sliding_window": 1024,
}
# Of Gemma 4: this model has no such fields.
ABSENT: dict[str, Any] = {"hidden_size_per_layer_input": 0, "enable_moe_block": False}


def architecture(config: read.Config) -> Architecture:
    """A `gemma4_unified_text` config as an Architecture."""
    return gemma4.decoder({**DEFAULTS, **config, **ABSENT})
