"""Aria (text): Llama with a mixture of packed experts and a shared MLP in every layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture, Dim, Weight
from skynet.architecture.packed import Packed
from skynet.architecture.router import Router
from skynet.models import llama

MODEL_TYPE = "aria_text"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "moe_num_experts": 8,
    "moe_topk": 2,
    "moe_num_shared_experts": 2,
}
REFUSED: dict[str, Any] = {"hidden_act": "silu"}  # that of experts, whatever the config says

MLP = llama.LAYER + "mlp."
EXPERT = MLP + "experts.{piece}."
IN = Packed(MLP + "experts.fc1.weight", transposed=True, parts=2)
OUT = Packed(MLP + "experts.fc2.weight", transposed=True)
SHARED = "shared_columns"
SHARED_MLP = ("shared_gate", "shared_up", "shared_down")
MIXTURE = {
    "gate": Weight("gate", EXPERT + "gate_proj", "column", "columns", packed=IN),
    "up": Weight("up", EXPERT + "up_proj", "column", "columns", packed=replace(IN, part=1)),
    "down": Weight("down", EXPERT + "down_proj", "row", "columns", packed=OUT),
}
WEIGHTS = (
    *(MIXTURE.get(weight.role, weight) for weight in llama.WEIGHTS),
    Weight("router", MLP + "router", "replicated", "experts"),
    Weight("shared_gate", MLP + "shared_experts.gate_proj", "column", SHARED),
    Weight("shared_up", MLP + "shared_experts.up_proj", "column", SHARED),
    Weight("shared_down", MLP + "shared_experts.down_proj", "row", SHARED),
)


def architecture(config: read.Config) -> Architecture:
    """An `aria_text` config as an Architecture."""
    config = DEFAULTS | dict(config)
    biased = SHARED_MLP if config["mlp_bias"] else ()
    config |= {"mlp_bias": False, "num_experts_per_tok": config["moe_topk"]}
    decoder = llama.decoder(config, weights=llama.with_bias(WEIGHTS, *biased))
    mixture = read.experts(config, "moe_num_experts") | {"router": Router(score="chosen")}
    columns = decoder.intermediate_size * read.size(config, "moe_num_shared_experts")
    return replace(decoder, dims={SHARED: Dim(columns)}, **mixture)
