"""Mistral Small 4: latent attention, experts chosen by softmax, growing queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.mixers import Latent
from skynet.architecture.positions import Rope
from skynet.architecture.rope import kind_of, parameters, read_rope
from skynet.architecture.router import Router
from skynet.errors import UnsupportedModel
from skynet.models import deepseek_v3

MODEL_TYPE = "mistral4"

DEFAULTS: dict[str, Any] = {
    **deepseek_v3.DEFAULTS,
    "max_position_embeddings": 1_048_576,
    "n_routed_experts": 128,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 256,
    "q_lora_rank": 1024,
    "qk_nope_head_dim": 64,
}
REFUSED: dict[str, Any] = {"mlp_bias": False}
ROPE: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 128.0,
    "original_max_position_embeddings": 8192,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
# Of the rope's parameters those that `read_rope` does not take.
OTHERS = ("llama_4_scaling_beta", "max_position_embeddings", "partial_rotary_factor")


def architecture(config: read.Config) -> Architecture:
    """A `mistral4` config as an Architecture."""
    config = DEFAULTS | dict(config)
    given = parameters(config) or ROPE
    config["rope_parameters"], config["rope_scaling"] = given, None
    router = Router(
        group_score="top2",
        sum_to_one=bool(config["norm_topk_prob"]),
        epsilon=deepseek_v3.EPSILON,
        scale=float(config["routed_scaling_factor"]),
        **deepseek_v3.groups(config),
    )
    rope, sparse = _rope(config, given), deepseek_v3.sparse_layers(config)
    arch = deepseek_v3.decoder(config, sparse=sparse, router=router, rope=rope)
    growth = float(given["llama_4_scaling_beta"]), int(given["original_max_position_embeddings"])
    return replace(arch, kinds=tuple(_growing(kind, growth) for kind in arch.kinds))


def _rope(config: read.Config, given: Mapping[str, Any]) -> Rope:
    rotary, plain = (read.size(config, f"qk_{part}_head_dim") for part in ("rope", "nope"))
    share = rotary / (rotary + plain)
    if kind_of(given) == "default" or given.get("partial_rotary_factor", share) != share:
        raise UnsupportedModel(
            f"mistral4 with rope {dict(given)} is not supported, only a scaled rope with "
            f"partial_rotary_factor={share}"
        )
    kept = {name: value for name, value in given.items() if name not in OTHERS}
    return read_rope(config, rotary, adjacent=bool(config["rope_interleave"]), given=kept)


def _growing(kind: Architecture, growth: tuple[float, int]) -> Architecture:
    mixers = (
        replace(mixer, growth=growth) if isinstance(mixer, Latent) else mixer
        for mixer in kind.mixers
    )
    return replace(kind, mixers=tuple(mixers))
