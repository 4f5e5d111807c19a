"""DeepSeek V3 and R1: latent attention, experts chosen by sigmoid from groups, a shared expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture, Dim, Weight
from skynet.architecture.packed import Packed
from skynet.architecture.positions import Rope
from skynet.architecture.router import Router
from skynet.errors import CheckpointError, UnsupportedModel
from skynet.models import latent, llama

MODEL_TYPE = "deepseek_v3"

DEFAULTS: dict[str, Any] = {
    **latent.DEFAULTS,
    "moe_intermediate_size": 2048,
    "max_position_embeddings": 4096,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 3,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "rope_interleave": True,
}
REFUSED: dict[str, Any] = {
    "mlp_bias": False,
    "moe_layer_freq": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}

EPSILON = 1e-20
EXPERT = llama.LAYER + "mlp.experts.{piece}."
# Names in files of Transformers that have all experts in one tensor: Mistral 4's.
IN, OUT = llama.LAYER + "mlp.experts.gate_up_proj", llama.LAYER + "mlp.experts.down_proj"
SHARED, SHARED_COLUMNS = llama.LAYER + "mlp.shared_experts.", "shared_columns"
ROUTER = Weight("router", llama.LAYER + "mlp.gate", "replicated", "experts")
ROUTER_BIAS = Weight(
    "router_bias",
    llama.LAYER + "mlp.gate.e_score_correction_bias",
    "replicated",
    "experts",
    bare=True,
    inner=(),
)
EXPERTS = (
    Weight("gate", EXPERT + "gate_proj", "column", "columns", packed=Packed(IN, part=0, parts=2)),
    Weight("up", EXPERT + "up_proj", "column", "columns", packed=Packed(IN, part=1, parts=2)),
    Weight("down", EXPERT + "down_proj", "row", "columns", packed=Packed(OUT)),
)
SHARED_EXPERTS = (
    Weight("shared_gate", SHARED + "gate_proj", "column", SHARED_COLUMNS),
    Weight("shared_up", SHARED + "up_proj", "column", SHARED_COLUMNS),
    Weight("shared_down", SHARED + "down_proj", "row", SHARED_COLUMNS),
)


def architecture(config: read.Config) -> Architecture:
    """A `deepseek_v3` config as an Architecture."""
    config = DEFAULTS | dict(config)
    return decoder(config, sparse=sparse_layers(config), router=sigmoid_router(config))


def decoder(
    config: dict[str, Any],
    *,
    sparse: Sequence[bool],
    router: Router,
    rope: Rope | None = None,
    adjacent: bool | None = None,
) -> Architecture:
    """The architecture shared by DeepSeek and its descendants; `config` has all defaults.

    sparse: by layer, whether it has experts.
    adjacent: see `latent.decoder`; by default the config's `rope_interleave`.
    """
    dense_columns = read.size(config, "intermediate_size")
    config |= {"intermediate_size": read.size(config, "moe_intermediate_size")}
    if adjacent is None:
        adjacent = latent.interleaved(config)
    base, attention = latent.decoder(config, adjacent=adjacent, rope=rope)
    experts = read.experts(config, "n_routed_experts") | {"router": router}
    _check_groups(router, experts["num_experts"], experts["experts_per_token"])
    shared = read.size(config, "n_shared_experts") * base.intermediate_size
    base = replace(base, dims={**base.dims, SHARED_COLUMNS: Dim(shared)})
    routing = (ROUTER, ROUTER_BIAS) if router.biased else (ROUTER,)
    dense = replace(base, intermediate_size=dense_columns, weights=(*attention, *latent.MLP))
    base = replace(base, **experts)
    mixture = replace(base, weights=(*attention, *routing, *EXPERTS, *SHARED_EXPERTS))
    return base.with_kinds([mixture if is_sparse else dense for is_sparse in sparse])


def sparse_layers(config: read.Config) -> list[bool]:
    """By layer, whether it has experts: all but the first ones."""
    first = config["first_k_dense_replace"]
    return [layer >= first for layer in range(read.size(config, "num_hidden_layers"))]


def sigmoid_router(config: read.Config) -> Router:
    """Sigmoid scores with a bias for the choice, from the best groups."""
    return Router(
        score="sigmoid",
        biased=True,
        group_score="top2",
        sum_to_one=bool(config["norm_topk_prob"]),
        epsilon=EPSILON,
        scale=float(config["routed_scaling_factor"]),
        **groups(config),
    )


def groups(config: read.Config) -> dict[str, Any]:
    """The router's groups; none where all of them are chosen."""
    count, chosen = config.get("n_group") or 1, config.get("topk_group") or 1
    if chosen >= count:
        return {}
    return {"groups": count, "groups_per_token": chosen}


def _check_groups(router: Router, experts: int, chosen: int) -> None:
    if not router.groups:
        return
    if experts % router.groups:
        raise CheckpointError(
            f"config.json: n_group={router.groups} does not divide n_routed_experts={experts}"
        )
    available = router.groups_per_token * (experts // router.groups)
    if chosen > available:
        raise UnsupportedModel(
            f"num_experts_per_tok={chosen} is not supported with {available} experts in the "
            f"topk_group={router.groups_per_token} groups of a token"
        )
