"""SmolLM3: Llama without rope in every fourth layer, and with optional windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.errors import CheckpointError
from skynet.models import llama

MODEL_TYPE = "smollm3"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 2_000_000.0,
    "use_sliding_window": False,
    "sliding_window": None,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
}


def architecture(config: read.Config) -> Architecture:
    """A `smollm3` config as an Architecture."""
    config = DEFAULTS | dict(config)
    decoder = llama.decoder(config)
    with_rope = has_rope(config, decoder.num_layers)
    if config.get("layer_types") is None:
        sliding = config["use_sliding_window"] and config["sliding_window"] is not None
        types = [
            "sliding_attention" if sliding and not rope else "full_attention" for rope in with_rope
        ]
        config = {**config, "layer_types": types}
    return replace(
        decoder,
        ropes=tuple(
            rope if has else None for rope, has in zip(decoder.ropes, with_rope, strict=True)
        ),
        windows=read.windows_by_layer_type(config),
    )


def has_rope(config: read.Config, layers: int) -> list[bool]:
    """Whether each layer has a rope: by `no_rope_layers`, else by `no_rope_layer_interval`."""
    given = config.get("no_rope_layers")  # despite its name, 1 for layers with rope
    if given is None:
        interval = config["no_rope_layer_interval"]
        return [(layer + 1) % interval != 0 for layer in range(layers)]
    if len(given) != layers:
        raise CheckpointError(f"config.json: {len(given)} no_rope_layers for {layers} layers")
    return [bool(has) for has in given]
