"""ModernBERT: an encoder with rope, a gated MLP, norms first, and windows in most layers."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Rope
from skynet.architecture.rope import read_rope
from skynet.architecture.weight import Weight
from skynet.errors import CheckpointError, UnsupportedModel
from skynet.models.encoder import CLASSIFIER, MASKED_LM, encoder, head_of
from skynet.models.llama import with_bias

__all__ = ["MODEL_TYPE", "REFUSED", "architecture"]

MODEL_TYPE = "modernbert"

REFUSED: dict[str, Any] = {"rope_scaling": None}

DEFAULTS: dict[str, Any] = {
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "decoder_bias": True,
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "classifier_pooling": "cls",
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
}
FULL, SLIDING = "full_attention", "sliding_attention"

LAYER = "model.layers.{layer}."
QKV: dict[str, Any] = {"fused": ("q", "k", "v")}
GATED: dict[str, Any] = {"fused": ("gate", "up")}
WEIGHTS = (
    Weight("embed", "model.embeddings.tok_embeddings", "vocab", "vocab"),
    Weight("embed_norm", "model.embeddings.norm", "replicated", "hidden"),
    Weight("attn_norm", LAYER + "attn_norm", "replicated", "hidden", first_layer=1),
    Weight("q", LAYER + "attn.Wqkv", "column", "heads", **QKV),
    Weight("k", LAYER + "attn.Wqkv", "column", "kv_heads", **QKV),
    Weight("v", LAYER + "attn.Wqkv", "column", "kv_heads", **QKV),
    Weight("o", LAYER + "attn.Wo", "row", "heads"),
    Weight("mlp_norm", LAYER + "mlp_norm", "replicated", "hidden"),
    Weight("gate", LAYER + "mlp.Wi", "column", "columns", **GATED),
    Weight("up", LAYER + "mlp.Wi", "column", "columns", **GATED),
    Weight("down", LAYER + "mlp.Wo", "row", "columns"),
    Weight("final_norm", "model.final_norm", "replicated", "hidden"),
)
HEAD = (
    Weight("head_dense", "head.dense", "replicated", "hidden"),
    Weight("head_dense_norm", "head.norm", "replicated", "hidden"),
    Weight("head", "decoder", "vocab", "vocab"),
    Weight("head_bias", "decoder", "vocab", "vocab", bias_only=True),
)
LABELS = (
    Weight("label_dense", "head.dense", "replicated", "hidden"),
    Weight("label_norm", "head.norm", "replicated", "hidden"),
    Weight("label_out", "classifier", "replicated", "labels", bias=True),
)
NORMS = ("embed_norm", "attn_norm", "mlp_norm", "final_norm", "head_dense_norm", "label_norm")


def architecture(config: read.Config) -> Architecture:
    """A `modernbert` config as an Architecture."""
    config = DEFAULTS | dict(config)
    types = _layer_types(config)
    ropes = {kind: _rope(config, kind) for kind in set(types)}
    pooling = config["classifier_pooling"]
    if pooling not in ("cls", "mean"):
        raise UnsupportedModel(
            f"classifier_pooling={pooling!r} is not supported: expected cls or mean"
        )
    head = {MASKED_LM: HEAD, CLASSIFIER: LABELS, "": ()}[head_of(config)]
    if not config["decoder_bias"]:
        head = tuple(weight for weight in head if weight.role != "head_bias")
    return encoder(
        config,
        with_bias(WEIGHTS + head, *_biased(config)),
        "model.",
        names={"hidden_act": "hidden_activation"},
        norm_eps=float(config["norm_eps"]),
        gated=True,
        learned_positions=False,
        ropes=tuple(ropes[kind] for kind in types),
        windows=tuple(
            read.size(config, "local_attention") // 2 if kind == SLIDING else None for kind in types
        ),
        head_activation=read.activation(config, "classifier_activation"),
        label_activation=read.activation(config, "classifier_activation"),
        label_pooling=pooling,
    )


def _biased(config: read.Config) -> tuple[str, ...]:
    roles: tuple[str, ...] = NORMS if config["norm_bias"] else ()
    roles += ("q", "k", "v", "o") if config["attention_bias"] else ()
    roles += ("gate", "up", "down") if config["mlp_bias"] else ()
    return roles + (("head_dense", "label_dense") if config["classifier_bias"] else ())


def _layer_types(config: read.Config) -> list[str]:
    count, every = read.size(config, "num_hidden_layers"), config["global_attn_every_n_layers"]
    types = config.get("layer_types")
    types = types or [SLIDING if layer % every else FULL for layer in range(count)]
    if len(types) != count or set(types) - {FULL, SLIDING}:
        raise CheckpointError(f"config.json: layer_types {types} for {count} layers")
    return list(types)


def _rope(config: read.Config, kind: str) -> Rope:
    given = dict((config.get("rope_parameters") or {}).get(kind) or {})
    theta = "global_rope_theta" if kind == FULL else "local_rope_theta"
    given.setdefault("rope_theta", config[theta])
    dims = read.head_dim(config, "hidden_size", "num_attention_heads")
    return read_rope(config, dims, given=given)
