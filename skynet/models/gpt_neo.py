"""GPT-Neo: GPT-2 with windows in some layers, unscaled scores, Q, K and V without biases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Weight
from skynet.errors import CheckpointError, UnsupportedModel
from skynet.models import gpt2

MODEL_TYPE = "gpt_neo"

DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 2048,
    "attention_types": [[["global", "local"], 12]],
    "window_size": 256,
}
# GPT-2's names of the config's fields.
NAMES = {
    "n_embd": "hidden_size",
    "n_head": "num_heads",
    "n_layer": "num_layers",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
}
OTHER_NAMES = {"num_heads": "num_attention_heads", "num_layers": "num_hidden_layers"}
GLOBAL, LOCAL = "global", "local"

LAYER = "transformer.h.{layer}."
LINEAR = {
    "q": Weight("q", LAYER + "attn.attention.q_proj", "column", "heads"),
    "k": Weight("k", LAYER + "attn.attention.k_proj", "column", "kv_heads"),
    "v": Weight("v", LAYER + "attn.attention.v_proj", "column", "kv_heads"),
    "o": Weight("o", LAYER + "attn.attention.out_proj", "row", "heads", bias=True),
}


def architecture(config: read.Config) -> Architecture:
    """A `gpt_neo` config as an Architecture."""
    config = DEFAULTS | dict(config)
    for field, other in OTHER_NAMES.items():
        if config.get(other) is not None:
            config[field] = config[other]
    for field in ("hidden_size", "num_heads", "num_layers"):  # named here as in the file
        read.size(config, field)
    renamed = {name: config[field] for name, field in NAMES.items() if field in config}
    decoder = gpt2.architecture(config | renamed)
    weights = (LINEAR.get(weight.role, weight) for weight in decoder.weights)
    return replace(
        decoder,
        model_type=MODEL_TYPE,
        windows=_windows(config, decoder.num_layers),
        attention_scale=1.0,
        weights=tuple(replace(weight, transposed=False) for weight in weights),
    )


def _windows(config: read.Config, count: int) -> tuple[int | None, ...]:
    """By `attention_layers`, a kind for each layer, or by `attention_types`, repeated runs."""
    kinds = config.get("attention_layers")
    # Each run is a list of kinds, and how often it is repeated.
    runs = config["attention_types"] if kinds is None else [(kinds, 1)]
    total = sum(len(run) * max(repeats, 0) for run, repeats in runs)
    if total != count:
        raise CheckpointError(f"config.json: {total} attention_layers for {count} layers")
    kinds = [kind for run, repeats in runs for kind in list(run) * repeats]
    unknown = sorted({str(kind) for kind in kinds} - {GLOBAL, LOCAL})
    if unknown:
        raise UnsupportedModel(f"attention_layers {unknown} are not supported")
    size = read.size(config, "window_size") if LOCAL in kinds else None
    return tuple(size if kind == LOCAL else None for kind in kinds)
