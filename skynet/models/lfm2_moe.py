"""LFM2 (mixture of experts): LFM2 with experts in all but the first layers."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.router import Router
from skynet.architecture.weight import Weight
from skynet.models import lfm2

MODEL_TYPE = "lfm2_moe"

DEFAULTS: dict[str, Any] = {
    "intermediate_size": 7168,
    "moe_intermediate_size": 1792,
    "num_dense_layers": 2,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "use_expert_bias": True,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
}
EPSILON = 1e-6
MLP = lfm2.LAYER + "feed_forward."
EXPERTS = (
    Weight("router", MLP + "gate", "replicated", "experts"),
    Weight("gate", MLP + "experts.{piece}.w1", "column", "columns"),
    Weight("up", MLP + "experts.{piece}.w3", "column", "columns"),
    Weight("down", MLP + "experts.{piece}.w2", "row", "columns"),
)
EXPERT_BIAS = Weight(
    "router_bias", MLP + "expert_bias", "replicated", "experts", bare=True, inner=()
)


def architecture(config: read.Config) -> Architecture:
    """An `lfm2_moe` config as an Architecture."""
    config = lfm2.defaults(DEFAULTS | dict(config))
    biased = bool(config["use_expert_bias"])
    mixture = read.experts(config, "num_experts") | {
        "weights": (*EXPERTS, EXPERT_BIAS) if biased else EXPERTS,
        "intermediate_size": read.size(config, "moe_intermediate_size"),
        "router": Router(
            score="sigmoid",
            biased=biased,
            sum_to_one=bool(config["norm_topk_prob"]),
            epsilon=EPSILON,
            scale=float(config["routed_scaling_factor"]),
        ),
    }
    dense = {
        "weights": lfm2.MLP,
        "intermediate_size": read.size(config, "intermediate_size"),
        "num_experts": 0,
        "experts_per_token": 0,
    }
    count = read.size(config, "num_hidden_layers")
    leading = min(count, int(config["num_dense_layers"]))
    return lfm2.decoder(config, mixture, [dense] * leading + [mixture] * (count - leading))
