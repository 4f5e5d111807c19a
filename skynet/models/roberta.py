"""RoBERTa: BERT whose positions begin after that of its padding."""

from __future__ import annotations

from typing import Any

from skynet.errors import CheckpointError
from skynet.models import bert
from skynet.models import config as read
from skynet.models.architecture import Architecture, Weight
from skynet.models.encoder import CLASSIFIER, MASKED_LM, REFUSED, encoder, head_of

__all__ = ["MODEL_TYPE", "REFUSED", "architecture"]

MODEL_TYPE = "roberta"

DEFAULTS: dict[str, Any] = {**bert.DEFAULTS, "pad_token_id": 1}

HEAD = (
    Weight("head_dense", "lm_head.dense", "replicated", "hidden", bias=True),
    Weight("head_dense_norm", "lm_head.layer_norm", "replicated", "hidden", bias=True),
    Weight("head_bias", "lm_head", "vocab", "vocab", bias_only=True),
)
LABELS = (
    Weight("label_dense", "classifier.dense", "replicated", "hidden", bias=True),
    Weight("label_out", "classifier.out_proj", "replicated", "labels", bias=True),
)


def architecture(config: read.Config) -> Architecture:
    """A `roberta` config as an Architecture."""
    config = DEFAULTS | dict(config)
    rows, offset = read.size(config, "max_position_embeddings"), config["pad_token_id"] + 1
    if offset >= rows:
        raise CheckpointError(f"config.json: {rows} positions, of which {offset} are never used")
    return encoder(
        config,
        bert.base("roberta.") + {MASKED_LM: HEAD, CLASSIFIER: LABELS, "": ()}[head_of(config)],
        "roberta.",
        norm_eps=float(config["layer_norm_eps"]),
        token_types=read.size(config, "type_vocab_size"),
        max_positions=rows - offset,
        position_offset=offset,
    )
