"""DeepSeek V2 and V2 Lite: latent attention, experts chosen by softmax, shared experts."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.router import Router
from skynet.errors import UnsupportedModel
from skynet.models import deepseek_v3, latent

MODEL_TYPE = "deepseek_v2"

DEFAULTS: dict[str, Any] = {
    **latent.DEFAULTS,
    "moe_intermediate_size": 1407,
    "n_shared_experts": 2,
    "n_routed_experts": 64,
    "n_group": None,
    "topk_group": None,
    "topk_method": "greedy",
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 0,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
# Transformers computes `norm_topk_prob` as false, whatever it is.
REFUSED: dict[str, Any] = {
    "mlp_bias": False,
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
}
METHODS = ("greedy", "group_limited_greedy")


def architecture(config: read.Config) -> Architecture:
    """A `deepseek_v2` config as an Architecture."""
    config = DEFAULTS | dict(config)
    method = config["topk_method"]
    if method not in METHODS:
        raise UnsupportedModel(
            f"topk_method={method!r} is not supported; known: {', '.join(METHODS)}"
        )
    router = Router(
        sum_to_one=False,
        scale=float(config["routed_scaling_factor"]),
        **(deepseek_v3.groups(config) if method == "group_limited_greedy" else {}),
    )
    sparse = deepseek_v3.sparse_layers(config)
    return deepseek_v3.decoder(config, sparse=sparse, router=router, adjacent=True)
