"""Falcon: one KV head or groups, Q K V fused by group, one or two sums per layer, rope or ALiBi."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Alibi
from skynet.architecture.rope import max_positions, read_rope, whole_head
from skynet.architecture.ties import tie
from skynet.architecture.weight import Weight
from skynet.errors import UnsupportedModel

MODEL_TYPE = "falcon"

DEFAULTS: dict[str, Any] = {
    "layer_norm_epsilon": 1e-5,
    "alibi": False,
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "bias": False,
    "max_position_embeddings": 2048,
    "activation": "gelu",
    "tie_word_embeddings": True,
}

LAYER = "transformer.h.{layer}."
QKV: dict[str, Any] = {"fused": ("q", "k", "v"), "by_group": True}
ENDS = (
    Weight("embed", "transformer.word_embeddings", "vocab", "vocab"),
    Weight("final_norm", "transformer.ln_f", "replicated", "hidden", bias=True),
    Weight("head", "lm_head", "vocab", "vocab"),
)


def architecture(config: read.Config) -> Architecture:
    """A `falcon` config as an Architecture."""
    config = DEFAULTS | dict(config)
    hidden, layers = read.size(config, "hidden_size"), read.size(config, "num_hidden_layers")
    head_dim = read.head_dim(config, "hidden_size", "num_attention_heads")
    kv_heads, heads = _kv_heads(config), read.size(config, "num_attention_heads")
    if heads % kv_heads:
        raise UnsupportedModel(f"{heads} query heads cannot share {kv_heads} KV heads evenly")
    positions = read.size(config, "max_position_embeddings")
    rope = None if config["alibi"] else read_rope(config, whole_head(config, head_dim))
    return Architecture(
        model_type=MODEL_TYPE,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=config.get("ffn_hidden_size") or 4 * hidden,
        vocab_size=read.size(config, "vocab_size"),
        max_positions=positions if rope is None else max_positions(rope, positions),
        norm="layer",
        norm_eps=float(config["layer_norm_epsilon"]),
        activation=read.activation(config, "activation"),
        gated=False,
        ropes=(rope,) * layers,
        learned_positions=False,
        windows=(None,) * layers,
        attention_scale=head_dim**-0.5,
        # The bias is scaled with the scores.
        alibi=Alibi(scale=head_dim**-0.5, bfloat16=True) if config["alibi"] else None,
        parallel=bool(config["parallel_attn"]),
        weights=tie(ENDS, bool(config["tie_word_embeddings"])) + _norms(config) + _products(config),
        prefixes=("transformer.", ""),
    )


def _kv_heads(config: read.Config) -> int:
    heads = read.size(config, "num_attention_heads")
    given = config.get("num_kv_heads") or heads
    if config["new_decoder_architecture"]:
        return int(given)
    if config["multi_query"]:
        return 1
    if given != heads:
        raise UnsupportedModel(
            f"falcon with num_kv_heads={given} needs new_decoder_architecture=True"
        )
    return heads


def _norms(config: read.Config) -> tuple[Weight, ...]:
    """Two norms where attention and MLP are sequential, or where each has one; else one norm."""
    new, parallel = config["new_decoder_architecture"], config["parallel_attn"]
    count = config.get("num_ln_in_parallel_attn") or (2 if new else 1)
    if new and not parallel:
        raise UnsupportedModel("falcon with new_decoder_architecture needs parallel_attn=True")
    if parallel and not new and count != 1:
        raise UnsupportedModel(
            f"falcon with num_ln_in_parallel_attn={count} needs new_decoder_architecture=True"
        )
    names = {"attn_norm": "input_layernorm"}
    if not parallel:
        names["mlp_norm"] = "post_attention_layernorm"
    elif count == 2:
        names = {"attn_norm": "ln_attn", "mlp_norm": "ln_mlp"}
    return tuple(
        Weight(role, LAYER + name, "replicated", "hidden", bias=True)
        for role, name in names.items()
    )


def _products(config: read.Config) -> tuple[Weight, ...]:
    fused, bias = LAYER + "self_attention.query_key_value", bool(config["bias"])
    return (
        Weight("q", fused, "column", "heads", bias, **QKV),
        Weight("k", fused, "column", "kv_heads", bias, **QKV),
        Weight("v", fused, "column", "kv_heads", bias, **QKV),
        Weight("o", LAYER + "self_attention.dense", "row", "heads", bias),
        Weight("up", LAYER + "mlp.dense_h_to_4h", "column", "columns", bias),
        Weight("down", LAYER + "mlp.dense_4h_to_h", "row", "columns", bias),
    )
