"""Latent attention in a Llama-like decoder, as its families describe it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.mixers import Latent
from skynet.architecture.positions import Rope
from skynet.architecture.rope import kind_of, parameters, read_rope, whole_head
from skynet.architecture.weight import Dim, Weight
from skynet.errors import UnsupportedModel
from skynet.models import llama

DEFAULTS: dict[str, Any] = {**llama.DEFAULTS, "q_lora_rank": 1536, "kv_lora_rank": 512}
ATTENTION = llama.LAYER + "self_attn."
OUTSIDE = tuple(weight for weight in llama.WEIGHTS if not weight.per_layer)
NORMS = tuple(weight for weight in llama.WEIGHTS if weight.role in ("attn_norm", "mlp_norm"))
MLP = tuple(weight for weight in llama.WEIGHTS if weight.role in llama.MLP)
# Units of `Architecture.dims`: the heads' rows of `kv_b` and inputs of `o`, outputs of the others.
KEYS_AND_VALUES, VALUES, LATENT, COMPRESSED = "keys_and_values", "values", "latent", "compressed"


def decoder(
    config: read.Config, *, adjacent: bool, rope: Rope | None = None
) -> tuple[Architecture, tuple[Weight, ...]]:
    """A decoder whose mixer is latent attention, without layers' weights; and those weights of a
    layer: norms and attention. `config` has all defaults.

    rope: of all layers; read from the config by default.
    adjacent: whether rotated pairs are neighbours.

    Raises:
        UnsupportedModel: fewer KV heads than query heads.
    """
    heads = read.size(config, "num_attention_heads")
    read.refuse(config, num_key_value_heads=heads)
    mixer = Latent(
        rank=read.size(config, "kv_lora_rank"),
        rotary=read.size(config, "qk_rope_head_dim"),
        key=read.size(config, "qk_nope_head_dim"),
        value=read.size(config, "v_head_dim"),
    )
    if rope is None:
        rope = read_rope(config, whole_head(config, mixer.rotary), adjacent=adjacent)
    head_dim = mixer.key + mixer.rotary
    biased = bool(config["attention_bias"])
    config = {**config, "head_dim": head_dim, "num_key_value_heads": heads, "attention_bias": False}
    base = llama.decoder(config, rope, OUTSIDE)
    query_rank = config["q_lora_rank"]
    if query_rank is not None:
        query_rank = read.size(config, "q_lora_rank")
    base = replace(
        base,
        attention_scale=head_dim**-0.5 * _scale(config),
        mixers=(mixer,),
        dims={
            KEYS_AND_VALUES: Dim(heads, mixer.key + mixer.value, serves="heads"),
            VALUES: Dim(heads, mixer.value, serves="heads"),
            LATENT: Dim(1, mixer.rank + mixer.rotary),
            "rank": Dim(mixer.rank),
            **({} if query_rank is None else {COMPRESSED: Dim(query_rank)}),
        },
    )
    return base, (*NORMS, *_weights(base.hidden_size, query_rank, mixer, biased))


def _weights(
    hidden: int, query_rank: int | None, mixer: Latent, biased: bool
) -> tuple[Weight, ...]:
    """biased: down-projections and the output, not the up-projections."""
    down: dict[str, Any] = {"cut": "replicated", "inner": (hidden,), "product": True}
    queries: tuple[Weight, ...]
    if query_rank is None:
        queries = (_queries("q_proj", mixer, None),)
    else:
        queries = (
            Weight("q_a", ATTENTION + "q_a_proj", unit=COMPRESSED, bias=biased, **down),
            Weight("q_a_norm", ATTENTION + "q_a_layernorm", "replicated", COMPRESSED),
            _queries("q_b_proj", mixer, (query_rank,)),
        )
    return (
        *queries,
        Weight(
            "kv_a",
            ATTENTION + "kv_a_proj_with_mqa",
            unit=LATENT,
            bias=biased,
            rotated_from=mixer.rank,
            **down,
        ),
        Weight("kv_a_norm", ATTENTION + "kv_a_layernorm", "replicated", "rank"),
        Weight(
            "kv_b",
            ATTENTION + "kv_b_proj",
            "column",
            KEYS_AND_VALUES,
            inner=(mixer.rank,),
            float32=True,
        ),
        Weight("o", ATTENTION + "o_proj", "row", VALUES, bias=biased),
    )


def _queries(name: str, mixer: Latent, inner: tuple[int, ...] | None) -> Weight:
    return Weight("q", ATTENTION + name, "column", "heads", inner=inner, rotated_from=mixer.key)


def _scale(config: read.Config) -> float:
    """What a scaled rope multiplies the scale of attention by: `mscale_all_dim`, squared."""
    given = parameters(config)
    weight, factor = given.get("mscale_all_dim"), given.get("factor")
    if kind_of(given) == "default" or not weight:
        return 1.0
    if not isinstance(factor, int | float):
        raise UnsupportedModel(f"rope with mscale_all_dim={weight!r} and no factor")
    return 1.0 if factor <= 1 else float(0.1 * weight * math.log(factor) + 1) ** 2
