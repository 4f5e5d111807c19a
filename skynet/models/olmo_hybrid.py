"""OLMo Hybrid: gated delta nets in most layers, OLMo 2's attention in the others.

not files that Transformers 5.24 saves anew, which divides their convolutions in three equal parts,
unless queries and values have as many channels
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.rope import parameters
from skynet.architecture.weight import Weight
from skynet.models import gated_delta, llama, olmo2

MODEL_TYPE = "olmo_hybrid"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "max_position_embeddings": 65536,
    "rope_theta": 10_000.0,
    "linear_conv_kernel_dim": 4,
    "linear_allow_neg_eigval": True,
}
NORM_EPS = 1e-5  # of delta nets
ATTENTION_PERIOD = 4  # layers
OUTSIDE = tuple(weight for weight in llama.WEIGHTS if not weight.per_layer)
MLP = tuple(weight for weight in llama.WEIGHTS if weight.role in llama.MLP)
# In files that Transformers writes, and in others.
NAMES = {
    "attn_norm": ("attention_layer_norm", "input_layernorm"),
    "mlp_norm": ("feedforward_layer_norm", "post_attention_layernorm"),
    "attn_post_norm": ("feedforward_layer_norm", "post_attention_layernorm"),
    "mlp_post_norm": ("post_feedforward_layernorm",),
}


def architecture(config: read.Config) -> Architecture:
    """An `olmo_hybrid` config as an Architecture."""
    config = defaults(DEFAULTS | dict(config) | {"mlp_bias": False})
    base = llama.decoder({**config, "attention_bias": False}, weights=OUTSIDE)
    if parameters(config).get("rope_theta", config["rope_theta"]) is None:
        base = replace(base, ropes=(None,) * base.num_layers)
    base = replace(base, dims=gated_delta.dims(config))
    mixer = gated_delta.mixer(
        config, NORM_EPS, beta_scale=2.0 if config["linear_allow_neg_eigval"] else 1.0
    )
    attention = tuple(
        weight for weight in olmo2.WEIGHTS if weight.role in (*llama.ATTENTION, "q_norm", "k_norm")
    )
    biased = llama.ATTENTION if config["attention_bias"] else ()
    kinds = {
        "linear_attention": replace(
            base,
            mixers=(mixer,),
            weights=(*_norms("attn_norm", "mlp_norm"), *delta(config), *MLP),
        ),
        "full_attention": replace(
            base,
            qk_norm="all",
            weights=(
                *llama.with_bias(attention, *biased),
                *_norms("attn_post_norm", "mlp_post_norm"),
                *MLP,
            ),
        ),
    }
    types = read.layer_types(config, tuple(kinds), _types(base.num_layers))
    return base.with_kinds([kinds[kind] for kind in types])


def defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the sizes that follow from others."""
    heads = read.size(config, "num_attention_heads")
    keys = config.get("linear_num_key_heads") or heads
    key_dim = config.get("linear_key_head_dim")
    key_dim = key_dim or int(0.75 * read.size(config, "hidden_size") / keys)
    return config | {
        "linear_num_key_heads": keys,
        "linear_num_value_heads": config.get("linear_num_value_heads") or heads,
        "linear_key_head_dim": key_dim,
        "linear_value_head_dim": config.get("linear_value_head_dim") or 2 * key_dim,
    }


def delta(config: read.Config) -> tuple[Weight, ...]:
    """The weights of a delta net."""
    kernel = read.size(config, "linear_conv_kernel_dim")
    names = {"delta_q": "q_proj", "delta_k": "k_proj", "delta_v": "v_proj", "delta_z": "g_proj"}
    return (
        *(gated_delta.projection(role, name) for role, name in names.items()),
        gated_delta.gate("delta_beta", "b_proj"),
        gated_delta.gate("delta_decay", "a_proj"),
        *(gated_delta.convolution(f"conv_{part}", f"{part}_conv1d", kernel) for part in "qkv"),
        *gated_delta.others("o_norm", "o_proj"),
    )


def _norms(*roles: str) -> tuple[Weight, ...]:
    norms = []
    for role in roles:
        name, *others = (llama.LAYER + each for each in NAMES[role])
        norms.append(Weight(role, name, "replicated", "hidden", others=tuple(others)))
    return tuple(norms)


def _types(count: int) -> list[str]:
    """The layer types of a config that has none: the last has attention if no other does."""
    types = [gated_delta.TYPES[layer % ATTENTION_PERIOD == 3] for layer in range(count)]
    return types if "full_attention" in types else [*types[:-1], "full_attention"]
