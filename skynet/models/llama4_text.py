"""Llama 4 (text): experts that weigh their inputs, chunks of attention, layers without rope."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture, Dim, Weight
from skynet.architecture.packed import Packed
from skynet.architecture.positions import Rope, Temperature
from skynet.architecture.rope import read_rope, whole_head
from skynet.architecture.router import Router
from skynet.architecture.window import Chunk
from skynet.errors import UnsupportedModel
from skynet.models import llama, smollm3

MODEL_TYPE = "llama4_text"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "intermediate_size_mlp": 16_384,
    "num_experts_per_tok": 1,
    "num_local_experts": 16,
    "interleave_moe_layer_step": 1,
    "use_qk_norm": True,
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 8192,
    "attn_temperature_tuning": True,
    "floor_scale": 8192,
    "attn_scale": 0.1,
}

MLP = llama.LAYER + "feed_forward."
EXPERT = MLP + "experts.{piece}."
IN = Packed(MLP + "experts.gate_up_proj", transposed=True, parts=2)
OUT = Packed(MLP + "experts.down_proj", transposed=True)
SHARED = "shared_columns"
DENSE = (
    Weight("gate", MLP + "gate_proj", "column", "columns"),
    Weight("up", MLP + "up_proj", "column", "columns"),
    Weight("down", MLP + "down_proj", "row", "columns"),
)
MIXTURE = (
    Weight("gate", EXPERT + "gate_proj", "column", "columns", packed=IN),
    Weight("up", EXPERT + "up_proj", "column", "columns", packed=replace(IN, part=1)),
    Weight("down", EXPERT + "down_proj", "row", "columns", packed=OUT),
    Weight("router", MLP + "router", "replicated", "experts"),
    Weight("shared_gate", MLP + "shared_expert.gate_proj", "column", SHARED),
    Weight("shared_up", MLP + "shared_expert.up_proj", "column", SHARED),
    Weight("shared_down", MLP + "shared_expert.down_proj", "row", SHARED),
)
OTHERS = tuple(weight for weight in llama.WEIGHTS if weight.role not in llama.MLP)


def architecture(config: read.Config) -> Architecture:
    """A `llama4_text` config as an Architecture."""
    config = DEFAULTS | dict(config) | {"mlp_bias": False}
    config["no_rope_layers"] = config.get("no_rope_layers") or None
    rope = read_rope(config, whole_head(config, config["head_dim"]), adjacent=True)
    base = llama.decoder(config, rope, OTHERS)
    mixture = read.experts(config, "num_local_experts")
    mixture["router"] = Router(score="sigmoid", sum_to_one=False, of_inputs=True)
    base = replace(base, dims={SHARED: Dim(base.intermediate_size)}, **mixture)
    has_rope = smollm3.has_rope(config, base.num_layers)
    base = replace(
        base,
        ropes=tuple(rope if has else None for has in has_rope),
        windows=_windows(config, has_rope),
    )
    experts, kinds = _expert_layers(config), _attention(base, config, rope)
    dense_size = read.size(config, "intermediate_size_mlp")
    layers = []
    for layer, has in enumerate(has_rope):
        kind = kinds[has]
        if layer in experts:
            layers.append(replace(kind, weights=(*kind.weights, *MIXTURE)))
        else:
            weights = (*kind.weights, *DENSE)
            layers.append(
                replace(kind, weights=weights, num_experts=0, intermediate_size=dense_size)
            )
    return base.with_kinds(layers)


def _attention(base: Architecture, config: read.Config, rope: Rope) -> dict[bool, Architecture]:
    """Of layers with and without rope."""
    if config["use_qk_norm"] and rope.attention_factor != 1:
        raise UnsupportedModel(
            f"rope {rope.kind!r} scales queries and keys before use_qk_norm=True, which is not "
            "supported"
        )
    tuned = config["attn_temperature_tuning"]
    temperature = Temperature(read.size(config, "floor_scale"), float(config["attn_scale"]))
    layer_weights = tuple(weight for weight in base.weights if weight.per_layer)
    kind = replace(base, weights=layer_weights)
    return {
        True: replace(kind, qk_norm="head" if config["use_qk_norm"] else None),
        False: replace(kind, temperature=temperature if tuned else None),
    }


def _expert_layers(config: read.Config) -> set[int]:
    given = config.get("moe_layers")
    if given is not None:
        return set(given)
    step = read.size(config, "interleave_moe_layer_step")
    return set(range(step - 1, read.size(config, "num_hidden_layers"), step))


def _windows(config: read.Config, has_rope: list[bool]) -> tuple[Chunk | None, ...]:
    size = config["attention_chunk_size"]
    default = ["chunked_attention" if has and size else "full_attention" for has in has_rope]
    types = read.layer_types(config, ("chunked_attention", "full_attention"), default)
    return tuple(
        Chunk(read.size(config, "attention_chunk_size")) if kind == "chunked_attention" else None
        for kind in types
    )
