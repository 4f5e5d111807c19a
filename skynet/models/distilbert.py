"""DistilBERT: BERT without token types, with other tensor names."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Weight
from skynet.models.encoder import CLASSIFIER, MASKED_LM, REFUSED, encoder, head_of

__all__ = ["MODEL_TYPE", "REFUSED", "architecture"]

MODEL_TYPE = "distilbert"

DEFAULTS: dict[str, Any] = {"activation": "gelu", "max_position_embeddings": 512}
NAMES = {
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
}
NORM_EPS = 1e-12  # not a field of the config

LAYER = "distilbert.transformer.layer.{layer}."
TABLES = "distilbert.embeddings."
WEIGHTS = (
    Weight("embed", TABLES + "word_embeddings", "vocab", "vocab"),
    Weight("positions", TABLES + "position_embeddings", "replicated", "positions"),
    Weight("embed_norm", TABLES + "LayerNorm", "replicated", "hidden", bias=True),
    Weight("q", LAYER + "attention.q_lin", "column", "heads", bias=True),
    Weight("k", LAYER + "attention.k_lin", "column", "kv_heads", bias=True),
    Weight("v", LAYER + "attention.v_lin", "column", "kv_heads", bias=True),
    Weight("o", LAYER + "attention.out_lin", "row", "heads", bias=True),
    Weight("attn_sum_norm", LAYER + "sa_layer_norm", "replicated", "hidden", bias=True),
    Weight("up", LAYER + "ffn.lin1", "column", "columns", bias=True),
    Weight("down", LAYER + "ffn.lin2", "row", "columns", bias=True),
    Weight("mlp_sum_norm", LAYER + "output_layer_norm", "replicated", "hidden", bias=True),
)
HEAD = (
    Weight("head_dense", "vocab_transform", "replicated", "hidden", bias=True),
    Weight("head_dense_norm", "vocab_layer_norm", "replicated", "hidden", bias=True),
    Weight("head", "vocab_projector", "vocab", "vocab"),
    Weight("head_bias", "vocab_projector", "vocab", "vocab", bias_only=True),
)
LABELS = (
    Weight("label_dense", "pre_classifier", "replicated", "hidden", bias=True),
    Weight("label_out", "classifier", "replicated", "labels", bias=True),
)


def architecture(config: read.Config) -> Architecture:
    """A `distilbert` config as an Architecture."""
    config = DEFAULTS | dict(config)
    return encoder(
        config,
        WEIGHTS + {MASKED_LM: HEAD, CLASSIFIER: LABELS, "": ()}[head_of(config)],
        "distilbert.",
        names=NAMES,
        norm_eps=NORM_EPS,
        head_activation=read.activation(config, "activation"),
        label_activation="relu",
    )
