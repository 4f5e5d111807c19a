"""BERT: an encoder with learned positions, token types, biases, layer norms after each sum."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Weight
from skynet.models.encoder import CLASSIFIER, MASKED_LM, REFUSED, encoder, head_of

__all__ = ["MODEL_TYPE", "REFUSED", "architecture", "base"]

MODEL_TYPE = "bert"

DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}

DECODER = "cls.predictions.decoder"
HEAD = (
    Weight("head_dense", "cls.predictions.transform.dense", "replicated", "hidden", bias=True),
    Weight(
        "head_dense_norm", "cls.predictions.transform.LayerNorm", "replicated", "hidden", bias=True
    ),
    Weight("head", DECODER, "vocab", "vocab"),
    Weight("head_bias", DECODER, "vocab", "vocab", bias_only=True, others=("cls.predictions",)),
)
LABELS = (
    Weight("label_dense", "bert.pooler.dense", "replicated", "hidden", bias=True),
    Weight("label_out", "classifier", "replicated", "labels", bias=True),
)


def base(prefix: str, width: str = "hidden") -> tuple[Weight, ...]:
    """The weights of BERT's layers and embedding, which other families have under another prefix.

    width: the unit of the embedding's norm, "hidden" or "embed".
    """
    layer = prefix + "encoder.layer.{layer}."
    table = prefix + "embeddings."
    norm: dict[str, Any] = {"bias": True}
    unit: Any = width
    return (
        Weight("embed", table + "word_embeddings", "vocab", "vocab"),
        Weight("positions", table + "position_embeddings", "replicated", "positions"),
        Weight("token_types", table + "token_type_embeddings", "replicated", "types"),
        Weight("embed_norm", table + "LayerNorm", "replicated", unit, **norm),
        Weight("q", layer + "attention.self.query", "column", "heads", bias=True),
        Weight("k", layer + "attention.self.key", "column", "kv_heads", bias=True),
        Weight("v", layer + "attention.self.value", "column", "kv_heads", bias=True),
        Weight("o", layer + "attention.output.dense", "row", "heads", bias=True),
        Weight(
            "attn_sum_norm", layer + "attention.output.LayerNorm", "replicated", "hidden", **norm
        ),
        Weight("up", layer + "intermediate.dense", "column", "columns", bias=True),
        Weight("down", layer + "output.dense", "row", "columns", bias=True),
        Weight("mlp_sum_norm", layer + "output.LayerNorm", "replicated", "hidden", **norm),
    )


def architecture(config: read.Config) -> Architecture:
    """A `bert` config as an Architecture."""
    config = DEFAULTS | dict(config)
    heads = {MASKED_LM: HEAD, CLASSIFIER: LABELS, "": ()}
    return encoder(
        config,
        base("bert.") + heads[head_of(config, "BertForPreTraining")],
        "bert.",
        norm_eps=float(config["layer_norm_eps"]),
        token_types=read.size(config, "type_vocab_size"),
        head_activation=read.activation(config, "hidden_act"),
    )
