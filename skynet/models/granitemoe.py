"""Granite 3 (mixture of experts): Granite with a mixture of experts in every layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.packed import Packed
from skynet.architecture.router import Router
from skynet.architecture.weight import Weight
from skynet.models import granite, llama

MODEL_TYPE = "granitemoe"

DEFAULTS: dict[str, Any] = {**granite.DEFAULTS, "num_experts_per_tok": 2}

MOE = llama.LAYER + "block_sparse_moe."
EXPERT = MOE + "experts.{piece}."
IN, OUT = MOE + "input_linear.weight", MOE + "output_linear.weight"
MIXTURE = {
    "gate": Weight(
        "gate", EXPERT + "gate_proj", "column", "columns", packed=Packed(IN, part=0, parts=2)
    ),
    "up": Weight("up", EXPERT + "up_proj", "column", "columns", packed=Packed(IN, part=1, parts=2)),
    "down": Weight("down", EXPERT + "down_proj", "row", "columns", packed=Packed(OUT)),
}
WEIGHTS = (
    *(MIXTURE.get(weight.role, weight) for weight in llama.WEIGHTS),
    Weight("router", MOE + "router.layer", "replicated", "experts"),
)


def architecture(config: read.Config) -> Architecture:
    """A `granitemoe` config as an Architecture."""
    return decoder(DEFAULTS | dict(config))


def decoder(config: read.Config, weights: tuple[Weight, ...] = WEIGHTS) -> Architecture:
    """The architecture shared with granitemoeshared; `config` has all defaults."""
    config = {**config, "mlp_bias": False}
    mixture = read.experts(config, "num_local_experts") | {"router": Router(score="chosen")}
    return replace(granite.decoder(config, weights), **mixture)
