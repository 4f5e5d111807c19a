"""Gemma 4 (text): heads by layer type, layers that share keys and values, inputs of each layer,
experts beside the MLP.

Refused is `use_bidirectional_attention="all"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture, Dim, Weight
from skynet.architecture.mixers import SelfAttention, SharedAttention
from skynet.architecture.packed import Packed
from skynet.architecture.rope import read_rope
from skynet.errors import CheckpointError, UnsupportedModel
from skynet.models import gemma2, llama
from skynet.models.layer_inputs import with_inputs

MODEL_TYPE = "gemma4_text"

DEFAULTS: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 262_144,
    "head_dim": 256,
    "global_head_dim": 512,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262_144,
    "num_kv_shared_layers": 0,
    "attention_k_eq_v": False,
    "use_double_wide_mlp": False,
    "enable_moe_block": False,
    "final_logit_softcapping": None,
}
ROPES: dict[str, dict[str, Any]] = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1_000_000.0,
    },
}
TYPES = tuple(ROPES)
LAYER = llama.LAYER
EXPERT, IN = LAYER + "experts.{piece}.", LAYER + "experts.gate_up_proj"
MIXTURE = (
    Weight("gate", EXPERT + "gate_proj", "column", "columns", packed=Packed(IN, part=0, parts=2)),
    Weight("up", EXPERT + "up_proj", "column", "columns", packed=Packed(IN, part=1, parts=2)),
    Weight(
        "down", EXPERT + "down_proj", "row", "columns", packed=Packed(LAYER + "experts.down_proj")
    ),
    Weight("router", LAYER + "router.proj", "replicated", "experts"),
    Weight("router_norm", LAYER + "router.scale", "replicated", "hidden", bare=True),
    Weight(
        "router_scale",
        LAYER + "router.per_expert_scale",
        "replicated",
        "experts",
        inner=(),
        bare=True,
    ),
    Weight("experts_norm", LAYER + "pre_feedforward_layernorm_2", "replicated", "hidden"),
    Weight("shared_post_norm", LAYER + "post_feedforward_layernorm_1", "replicated", "hidden"),
    Weight("experts_post_norm", LAYER + "post_feedforward_layernorm_2", "replicated", "hidden"),
)
QUERY_NORM = Weight("q_norm", LAYER + "self_attn.q_norm", "replicated", "head_dim")
KEY_NORM = Weight("k_norm", LAYER + "self_attn.k_norm", "replicated", "head_dim")
SCALE = Weight("layer_scale", LAYER + "layer_scalar", "replicated", "one", inner=(), bare=True)
KEYS = ("k", "v", "k_norm")


class Heads(NamedTuple):
    """The KV heads of a layer, and the size of its heads."""

    kv_heads: int
    head_dim: int


def architecture(config: read.Config) -> Architecture:
    """A `gemma4_text` config as an Architecture."""
    return decoder(DEFAULTS | dict(config))


def decoder(config: dict[str, Any]) -> Architecture:
    """The architecture shared by Gemma 4 and its unified model; `config` has all defaults."""
    if config.get("use_bidirectional_attention") == "all":
        raise UnsupportedModel(
            "use_bidirectional_attention='all' is not supported: tokens would also see later ones"
        )
    count, types = read.size(config, "num_hidden_layers"), _types(config)
    heads = _heads(config, types)
    sources = _sources(config, types)
    coarsest = min(heads, key=lambda each: each.kv_heads)
    plain = config | {
        "num_key_value_heads": coarsest.kv_heads,
        "mlp_bias": False,
        "hidden_act": config["hidden_activation"],
        "rope_parameters": None,
    }
    base = llama.decoder(plain, weights=gemma2.WEIGHTS)
    given = config.get("rope_parameters") or ROPES
    base = replace(
        base,
        attention_scale=1.0,
        embed_scale=base.hidden_size**0.5,
        qk_norm="head",
        logit_cap=read.cap(config, "final_logit_softcapping"),
        windows=tuple(read.window(config) if kind == TYPES[0] else None for kind in types),
        ropes=tuple(
            read_rope(config, heads[layer].head_dim, given=_rope(given, kind))
            for layer, kind in enumerate(types)
        ),
        dims={"one": Dim(1)},
    )
    base = with_inputs(_with_experts(base, config), config)
    layers = [
        _layer(base, config, types[layer], heads[layer], sources[layer]) for layer in range(count)
    ]
    return base.with_kinds(layers)


def _with_experts(arch: Architecture, config: read.Config) -> Architecture:
    """The architecture with experts beside each MLP, if the config has any."""
    if not config["enable_moe_block"]:
        return arch
    sizes = {**config, "num_experts_per_tok": config.get("top_k_experts")}
    beside = tuple(
        replace(weight, role=f"shared_{weight.role}", unit="shared_columns")
        if weight.role in llama.MLP
        else weight
        for weight in arch.weights
    )
    return replace(
        arch,
        **read.experts(sizes, "num_experts"),
        intermediate_size=read.size(config, "moe_intermediate_size"),
        dims={**arch.dims, "shared_columns": Dim(arch.intermediate_size)},
        weights=(*beside, *MIXTURE),
    )


def _layer(
    base: Architecture, config: read.Config, kind: str, heads: Heads, source: int | None
) -> Architecture:
    """A layer as an architecture. source: the layer whose keys and values it shares."""
    if base.num_heads % heads.kv_heads:
        raise UnsupportedModel(
            f"{base.num_heads} query heads cannot share {heads.kv_heads} KV heads evenly"
        )
    weights = (*base.weights, QUERY_NORM, KEY_NORM, SCALE)
    weights = tuple(weight for weight in weights if weight.per_layer)
    columns = {"columns": base.intermediate_size}
    if base.num_experts:
        columns["shared_columns"] = base.dims["shared_columns"].count
    alike = bool(config["attention_k_eq_v"]) and kind == TYPES[1]
    if source is not None:
        weights = tuple(weight for weight in weights if weight.role not in KEYS)
        if config["use_double_wide_mlp"]:  # the MLP, not the experts beside it
            widened = "shared_columns" if base.num_experts else "columns"
            columns[widened] *= 2
    elif alike:
        weights = tuple(weight for weight in weights if weight.role != "v")
    own = SelfAttention(values_are_keys=alike, normed_values=True)
    return replace(
        base,
        num_kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        intermediate_size=columns.pop("columns"),
        dims={**base.dims, **{unit: Dim(count) for unit, count in columns.items()}},
        weights=weights,
        mixers=(own if source is None else SharedAttention(source),),
    )


def _rope(given: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The parameters of the rope of a type of layers."""
    own = given.get(kind)
    if not isinstance(own, Mapping):
        raise CheckpointError(f"config.json: rope_parameters has {own!r:.40} for {kind}")
    return own


def _types(config: read.Config) -> tuple[str, ...]:
    """The type of each layer; the last one always has full attention."""
    count, pattern = read.size(config, "num_hidden_layers"), config["sliding_window_pattern"]
    default = [TYPES[(layer + 1) % pattern == 0] for layer in range(count)]
    return (*read.layer_types(config, TYPES, default)[:-1], TYPES[1])


def _heads(config: read.Config, types: Sequence[str]) -> list[Heads]:
    """The KV heads of each layer: of its own, or of all layers with full attention."""
    given: Mapping[Any, Mapping[str, Any]] | None = config.get("per_layer_config")
    if given is not None:
        of_layers = {int(layer): own for layer, own in given.items()}  # "05" in files
    else:
        full = {"head_dim": config["global_head_dim"]}
        if config["attention_k_eq_v"] and config.get("num_global_key_value_heads"):
            full["num_key_value_heads"] = config["num_global_key_value_heads"]
        of_layers = {layer: full for layer, kind in enumerate(types) if kind == TYPES[1]}
    known, heads = {"head_dim", "num_key_value_heads"}, []
    for layer in range(len(types)):
        own = of_layers.get(layer, {})
        unknown = sorted(set(own) - known)
        if unknown:
            raise UnsupportedModel(f"per_layer_config with {unknown} is not supported")
        sizes = {**config, **own}
        heads.append(Heads(read.size(sizes, "num_key_value_heads"), read.size(sizes, "head_dim")))
    return heads


def _sources(config: read.Config, types: Sequence[str]) -> list[int | None]:
    """The layer whose keys and values each layer shares: the last of its type that has its own."""
    shared, count = config["num_kv_shared_layers"] or 0, len(types)
    if not 0 <= shared <= count:
        raise CheckpointError(f"config.json: num_kv_shared_layers is {shared} of {count} layers")
    first = count - shared
    own = {kind: layer for layer, kind in enumerate(types[:first])}
    lacking = sorted(set(types[first:]) - set(own))
    if lacking:
        raise UnsupportedModel(
            f"num_kv_shared_layers={shared} is not supported: no earlier layer of type {lacking} "
            "has keys and values"
        )
    return [None] * first + [own[kind] for kind in types[first:]]
