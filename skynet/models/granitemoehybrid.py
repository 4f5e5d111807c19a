"""Granite 4: Mamba-2 or attention in each layer, an MLP, and experts beside it in some members."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.router import Router
from skynet.architecture.weight import Dim
from skynet.models import granite, granitemoe, granitemoeshared, llama, mamba2

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
LAYER, LINEAR, FULL = llama.LAYER, "linear_attention", "full_attention"
OUTSIDE = tuple(weight for weight in llama.WEIGHTS if not weight.per_layer)
NORMS = tuple(weight for weight in llama.WEIGHTS if weight.role in ("attn_norm", "mlp_norm"))
ATTENTION = tuple(weight for weight in llama.WEIGHTS if weight.role in llama.ATTENTION)
EXPERTS = tuple(
    weight
    for weight in granitemoe.WEIGHTS
    if weight.role in granitemoe.MIXTURE or weight.role == "router"
)
# The shared MLP, where it is the only one.
MLP = tuple(
    replace(
        weight,
        role=weight.role.removeprefix("shared_"),
        unit="columns",
        fused=tuple(role.removeprefix("shared_") for role in weight.fused),
    )
    for weight in granitemoeshared.SHARED_MLP
)


def architecture(config: read.Config) -> Architecture:
    """A `granitemoehybrid` config as an Architecture."""
    config = DEFAULTS | dict(config) | {"mlp_bias": False}
    dims: dict[str, Dim] = {}
    mixture: dict[str, Any] = {}
    if config["num_local_experts"]:
        mixture = read.experts(config, "num_local_experts") | {"router": Router(score="chosen")}
        mlp = (*EXPERTS, *granitemoeshared.SHARED_MLP)
        dims[granitemoeshared.SHARED] = Dim(read.size(config, "shared_intermediate_size"))
    else:
        mlp, config["intermediate_size"] = MLP, config["shared_intermediate_size"]
    base = replace(granite.decoder(config, OUTSIDE), dims=dims, **mixture)
    if config["position_embedding_type"] != "rope":
        base = replace(base, ropes=(None,) * base.num_layers)
    types = _types(config)
    attention = llama.with_bias(ATTENTION, *(llama.ATTENTION if config["attention_bias"] else ()))
    kinds = {FULL: replace(base, weights=(*NORMS, *attention, *mlp))}
    if LINEAR in types:
        mixer, own = mamba2.mixer(config, config["mamba_expand"] * base.hidden_size)
        of_mixer = mamba2.weights(LAYER + "mamba.", mixer, **mamba2.biases(config))
        weights = (*NORMS, *of_mixer, *mlp)
        kinds[LINEAR] = replace(base, mixers=(mixer,), dims=dims | own, weights=weights)
    return base.with_kinds([kinds[kind] for kind in types])


def _types(config: read.Config) -> tuple[str, ...]:
    """The type of each layer, under its current name."""
    types = [RENAMED.get(kind, kind) for kind in config.get("layer_types") or ()]
    default = [LINEAR] * read.size(config, "num_hidden_layers")
    return read.layer_types({**config, "layer_types": types}, (LINEAR, FULL), default)
