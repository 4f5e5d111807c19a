"""ELECTRA: BERT with an embedding that may be narrower, and is projected after its norm."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Weight
from skynet.models import bert
from skynet.models.encoder import CLASSIFIER, MASKED_LM, REFUSED, encoder, head_of

__all__ = ["MODEL_TYPE", "REFUSED", "architecture"]

MODEL_TYPE = "electra"

DEFAULTS: dict[str, Any] = {**bert.DEFAULTS, "embedding_size": 128}

PROJECTION = (
    Weight("project_in", "electra.embeddings_project", "replicated", "hidden", bias=True),
)
HEAD = (
    Weight("head_dense", "generator_predictions.dense", "replicated", "embed", bias=True),
    Weight("head_dense_norm", "generator_predictions.LayerNorm", "replicated", "embed", bias=True),
    Weight("head", "generator_lm_head", "vocab", "vocab"),
    Weight("head_bias", "generator_lm_head", "vocab", "vocab", bias_only=True),
)
LABELS = (
    Weight("label_dense", "classifier.dense", "replicated", "hidden", bias=True),
    Weight("label_out", "classifier.out_proj", "replicated", "labels", bias=True),
)


def architecture(config: read.Config) -> Architecture:
    """An `electra` config as an Architecture."""
    config = DEFAULTS | dict(config)
    width = read.size(config, "embedding_size")
    weights = bert.base("electra.", "embed")
    if width != config.get("hidden_size"):
        weights += PROJECTION
    return encoder(
        config,
        weights + {MASKED_LM: HEAD, CLASSIFIER: LABELS, "": ()}[head_of(config)],
        "electra.",
        norm_eps=float(config["layer_norm_eps"]),
        token_types=read.size(config, "type_vocab_size"),
        embed_size=width,
        project_after_norm=True,
        label_activation="gelu",
    )
