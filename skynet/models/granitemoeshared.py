"""Granite 3 (experts and a shared MLP): Granite's mixture, and an MLP beside it for all tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Dim, Weight
from skynet.models import granitemoe, llama

MODEL_TYPE = "granitemoeshared"

DEFAULTS: dict[str, Any] = {**granitemoe.DEFAULTS, "shared_intermediate_size": 0}

SHARED, IN = "shared_columns", ("shared_gate", "shared_up")
SHARED_MLP = (
    *(
        Weight(role, llama.LAYER + "shared_mlp.input_linear", "column", SHARED, fused=IN)
        for role in IN
    ),
    Weight("shared_down", llama.LAYER + "shared_mlp.output_linear", "row", SHARED),
)


def architecture(config: read.Config) -> Architecture:
    """A `granitemoeshared` config as an Architecture."""
    config = DEFAULTS | dict(config)
    if not config["shared_intermediate_size"]:
        return granitemoe.decoder(config)
    columns = Dim(read.size(config, "shared_intermediate_size"))
    decoder = granitemoe.decoder(config, (*granitemoe.WEIGHTS, *SHARED_MLP))
    return replace(decoder, dims={SHARED: columns})
