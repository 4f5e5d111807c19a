"""GLM 4.7 Flash: DeepSeek V3 with any choice of layers that have experts."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.errors import CheckpointError, UnsupportedModel
from skynet.models import deepseek_v3

MODEL_TYPE = "glm4_moe_lite"

DEFAULTS: dict[str, Any] = {
    **deepseek_v3.DEFAULTS,
    "moe_intermediate_size": 1536,
    "max_position_embeddings": 202_752,
    "rms_norm_eps": 1e-5,
    "n_routed_experts": 64,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.8,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "mlp_layer_types": None,
}
REFUSED = deepseek_v3.REFUSED
SPARSE = {"dense": False, "sparse": True}


def architecture(config: read.Config) -> Architecture:
    """A `glm4_moe_lite` config as an Architecture."""
    config = DEFAULTS | dict(config)
    router = deepseek_v3.sigmoid_router(config)
    return deepseek_v3.decoder(config, sparse=_sparse_layers(config), router=router)


def _sparse_layers(config: read.Config) -> list[bool]:
    count, types = read.size(config, "num_hidden_layers"), config["mlp_layer_types"]
    if types is None:
        return [layer > 0 for layer in range(count)]
    unknown = sorted(set(types) - set(SPARSE))
    if unknown:
        raise UnsupportedModel(f"mlp_layer_types {unknown} are not supported; known: {[*SPARSE]}")
    if len(types) != count:
        raise CheckpointError(f"config.json: {len(types)} mlp_layer_types for {count} layers")
    return [SPARSE[kind] for kind in types]
