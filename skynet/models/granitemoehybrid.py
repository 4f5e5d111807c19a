"""Granite 4: Mamba-2 or attention in each layer, with Granite's multipliers.

Without experts only: `num_local_experts` is 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture, Weight
from skynet.errors import UnsupportedModel
from skynet.models import granite, llama, mamba2

MODEL_TYPE = "granitemoehybrid"

DEFAULTS: dict[str, Any] = {
    **granite.DEFAULTS,
    **mamba2.DEFAULTS,
    "shared_intermediate_size": 1024,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "position_embedding_type": None,
}
# The names of layer types in older configs.
RENAMED = {"mamba": "linear_attention", "attention": "full_attention"}
LAYER = llama.LAYER
NORMS = tuple(weight for weight in llama.WEIGHTS if weight.role in ("attn_norm", "mlp_norm"))
ATTENTION = tuple(weight for weight in llama.WEIGHTS if weight.role in llama.ATTENTION)
SHARED = LAYER + "shared_mlp."
MLP = (
    Weight("gate", SHARED + "input_linear", "column", "columns", fused=("gate", "up")),
    Weight("up", SHARED + "input_linear", "column", "columns", fused=("gate", "up")),
    Weight("down", SHARED + "output_linear", "row", "columns"),
)


def architecture(config: read.Config) -> Architecture:
    """A `granitemoehybrid` config as an Architecture."""
    config = DEFAULTS | dict(config) | {"mlp_bias": False}
    if config["num_local_experts"]:
        raise UnsupportedModel(
            f"num_local_experts={config['num_local_experts']} is not supported, only 0"
        )
    config["intermediate_size"] = config["shared_intermediate_size"]
    base = granite.architecture(config)
    outside = tuple(weight for weight in base.weights if not weight.per_layer)
    if config["position_embedding_type"] != "rope":
        base = replace(base, ropes=(None,) * base.num_layers)
    base = replace(base, weights=outside)
    types = [RENAMED.get(kind, kind) for kind in config.get("layer_types") or ()]
    linear, full = "linear_attention", "full_attention"
    types = read.layer_types(
        {**config, "layer_types": types}, (linear, full), [linear] * base.num_layers
    )
    biased = llama.ATTENTION if config["attention_bias"] else ()
    attention = llama.with_bias(ATTENTION, *biased)
    kinds = {full: replace(base, weights=(*NORMS, *attention, *MLP))}
    if linear in types:
        mixer, dims = mamba2.mixer(config, config["mamba_expand"] * base.hidden_size)
        of_mixer = mamba2.weights(LAYER + "mamba.", mixer, **mamba2.biases(config))
        mamba = replace(base, mixers=(mixer,), dims=dims, weights=(*NORMS, *of_mixer, *MLP))
        kinds[linear] = mamba
    return base.with_kinds([kinds[kind] for kind in types])
