"""Nemotron-H and Nemotron 3: each layer is Mamba-2, attention without positions, an MLP or experts.

The layers for predicting several tokens are left out.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.mixers import Mamba2
from skynet.architecture.positions import Rope
from skynet.architecture.router import Router
from skynet.architecture.weight import Dim, Weight
from skynet.errors import CheckpointError
from skynet.models import llama, mamba2

MODEL_TYPE = "nemotron_h"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "intermediate_size": 21504,
    "mlp_hidden_act": "relu2",
    "ssm_state_size": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "mamba_hidden_act": "silu",
    "n_groups": 8,
    "conv_kernel": 4,
    "time_step_min": 0.001,
    "use_conv_bias": True,
    "use_bias": False,
    "n_routed_experts": 8,
    "moe_intermediate_size": 7688,
    "moe_shared_expert_intermediate_size": 7688,
    "moe_latent_size": None,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "layer_norm_epsilon": 1e-5,
}
RENAMED = {
    "mamba_n_groups": "n_groups",
    "mamba_d_conv": "conv_kernel",
    "mamba_dt_min": "time_step_min",
    "mamba_conv_bias": "use_conv_bias",
}
PATTERN = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
# The names of layer types in newer configs.
TYPES = {"linear_attention": "mamba", "full_attention": "attention"}
LAYER = "model.layers.{layer}."
MIXER, EXPERT = LAYER + "mixer.", LAYER + "mixer.experts.{piece}."
OUTSIDE = (
    Weight("embed", "model.embeddings", "vocab", "vocab"),
    Weight("final_norm", "model.norm_f", "replicated", "hidden"),
    Weight("head", "lm_head", "vocab", "vocab"),
)
MIXER_NORM = Weight("attn_norm", LAYER + "norm", "replicated", "hidden")
MLP_NORM = Weight("mlp_norm", LAYER + "norm", "replicated", "hidden")
ATTENTION = (
    MIXER_NORM,
    Weight("q", MIXER + "q_proj", "column", "heads"),
    Weight("k", MIXER + "k_proj", "column", "kv_heads"),
    Weight("v", MIXER + "v_proj", "column", "kv_heads"),
    Weight("o", MIXER + "o_proj", "row", "heads"),
)
MLP = (
    MLP_NORM,
    Weight("up", MIXER + "up_proj", "column", "columns"),
    Weight("down", MIXER + "down_proj", "row", "columns"),
)
SHARED = (
    Weight("shared_up", MIXER + "shared_experts.up_proj", "column", "shared_columns"),
    Weight("shared_down", MIXER + "shared_experts.down_proj", "row", "shared_columns"),
)


def architecture(config: read.Config) -> Architecture:
    """A `nemotron_h` config as an Architecture."""
    renamed = {new: config[old] for old, new in RENAMED.items() if old in config}
    config = DEFAULTS | dict(config) | renamed
    types = _types(config)
    config |= {
        "num_hidden_layers": len(types),
        "hidden_act": config["mlp_hidden_act"],
        "rms_norm_eps": config["layer_norm_epsilon"],
        # Whatever the config says, as in Transformers
        "attention_bias": False,
        "tie_word_embeddings": False,
    }
    bias = bool(config["mlp_bias"])
    base = llama.decoder(config, Rope(dims=2), OUTSIDE)
    base = replace(
        base,
        gated=False,
        ropes=(None,) * len(types),
        prefixes=("model.", "backbone.", ""),
    )
    if "mamba" in types:
        heads, groups = (read.size(config, each) for each in ("mamba_num_heads", "n_groups"))
        base = replace(base, dims=mamba2.dims(heads, groups, _mixer(config)))
    dense = base
    if "moe" in types:
        base = _with_experts(base, config)
    mlp = llama.with_bias(MLP, *(llama.MLP if bias else ()))
    kinds = {
        "mamba": lambda: _mamba(base, config),
        "attention": lambda: replace(base, weights=ATTENTION),
        "mlp": lambda: replace(dense, dims=base.dims, mixers=(), weights=mlp),
        "moe": lambda: _experts(base, bias),
    }
    made = {kind: kinds[kind]() for kind in dict.fromkeys(types)}
    return base.with_kinds([made[kind] for kind in types])


def _types(config: dict[str, Any]) -> list[str]:
    """The type of each layer.

    Raises:
        CheckpointError: a type that is not known.
    """
    given = config.get("layers_block_type") or config.get("layer_types")
    if given is None:
        given = [PATTERN.get(each, each) for each in config.get("hybrid_override_pattern", "ME*-")]
    types = [TYPES.get(each, each) for each in given]
    unknown = sorted(set(types) - set(PATTERN.values()))
    if unknown or not types:
        raise CheckpointError(
            f"config.json: layers of types {unknown}, expected some of {sorted(PATTERN.values())}"
        )
    return types


def _mixer(config: dict[str, Any]) -> Mamba2:
    return Mamba2(
        head_size=read.size(config, "mamba_head_dim"),
        state_size=read.size(config, "ssm_state_size"),
        kernel=read.size(config, "conv_kernel"),
        activation=read.activation(config, "mamba_hidden_act"),
        step_limits=(float(config["time_step_min"]), inf),
    )


def _mamba(base: Architecture, config: dict[str, Any]) -> Architecture:
    mixer, bias = _mixer(config), bool(config["use_bias"])
    weights = mamba2.weights(
        MIXER, mixer, conv_bias=bool(config["use_conv_bias"]), in_bias=bias, out_bias=bias
    )
    return replace(base, mixers=(mixer,), weights=(MIXER_NORM, *weights))


def _with_experts(base: Architecture, config: dict[str, Any]) -> Architecture:
    """The architecture with the sizes of its experts."""
    mixture = read.experts(config, "n_routed_experts")
    groups = read.size(config, "n_group")
    mixture["router"] = Router(
        score="sigmoid",
        biased=True,
        groups=groups if groups > 1 else 0,
        groups_per_token=read.size(config, "topk_group"),
        group_score="top2",
        sum_to_one=bool(config["norm_topk_prob"]),
        epsilon=1e-20,
        scale=float(config["routed_scaling_factor"]),
    )
    columns = Dim(read.size(config, "moe_shared_expert_intermediate_size"))
    dims = {**base.dims, "shared_columns": columns}
    if config["moe_latent_size"] is not None:
        read.refuse(config, mlp_bias=False)
        dims["latent"] = Dim(read.size(config, "moe_latent_size"))
    size = read.size(config, "moe_intermediate_size")
    return replace(base, intermediate_size=size, dims=dims, **mixture)


def _experts(base: Architecture, bias: bool) -> Architecture:
    """The architecture of a layer of experts, which may compute in a smaller space than others."""
    latent = base.dims.get("latent")
    inner = None if latent is None else (latent.count,)
    weights = (
        MLP_NORM,
        Weight("router", MIXER + "gate", "replicated", "experts"),
        Weight(
            "router_bias",
            MIXER + "gate.e_score_correction_bias",
            "replicated",
            "experts",
            bare=True,
            inner=(),
        ),
        Weight("up", EXPERT + "up_proj", "column", "columns", inner=inner),
        Weight("down", EXPERT + "down_proj", "row", "columns", inner=inner),
        *llama.with_bias(SHARED, *(weight.role for weight in SHARED if bias)),
    )
    if latent is not None:
        hidden = base.hidden_size
        weights += (
            Weight("latent_in", MIXER + "fc1_latent_proj", "replicated", "latent", inner=(hidden,)),
            Weight("latent_out", MIXER + "fc2_latent_proj", "replicated", "hidden", inner=inner),
        )
    return replace(base, mixers=(), weights=weights)
