"""Qwen3 (mixture of experts): Qwen3 with a mixture of experts in every layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Weight
from skynet.models import llama, qwen3

MODEL_TYPE = "qwen3_moe"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
}
REFUSED: dict[str, Any] = {"decoder_sparse_step": 1, "mlp_only_layers": []}

EXPERT = llama.LAYER + "mlp.experts.{piece}."
MIXTURE = {
    "gate": Weight("gate", EXPERT + "gate_proj", "column", "columns"),
    "up": Weight("up", EXPERT + "up_proj", "column", "columns"),
    "down": Weight("down", EXPERT + "down_proj", "row", "columns"),
}
WEIGHTS = (
    *(MIXTURE.get(weight.role, weight) for weight in llama.WEIGHTS),
    Weight("router", llama.LAYER + "mlp.gate", "replicated", "experts"),
    *qwen3.HEAD_NORMS,
)


def architecture(config: read.Config) -> Architecture:
    """A `qwen3_moe` config as an Architecture."""
    config = DEFAULTS | dict(config) | {"mlp_bias": False}
    count = "num_experts" if config.get("num_experts") is not None else "num_local_experts"
    config["intermediate_size"] = config["moe_intermediate_size"]
    decoder = llama.decoder(config, weights=WEIGHTS)
    sliding = config["use_sliding_window"] and config["sliding_window"] is not None
    window = read.window(config) if sliding else None
    return replace(
        decoder,
        qk_norm="head",
        windows=(window,) * decoder.num_layers,
        **read.experts(config, count, sum_to_one=bool(config["norm_topk_prob"])),
    )
