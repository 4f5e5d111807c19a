"""RoBERTa: BERT with positions that begin after the padding token's id."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Weight
from skynet.errors import CheckpointError
from skynet.models import bert
from skynet.models.encoder import CLASSIFIER, MASKED_LM, REFUSED, encoder, head_of

__all__ = ["MODEL_TYPE", "REFUSED", "architecture"]

MODEL_TYPE = "roberta"

DEFAULTS: dict[str, Any] = {**bert.DEFAULTS, "pad_token_id": 1}

DECODER = "lm_head.decoder"
HEAD = (
    Weight("head_dense", "lm_head.dense", "replicated", "hidden", bias=True),
    Weight("head_dense_norm", "lm_head.layer_norm", "replicated", "hidden", bias=True),
    Weight("head", DECODER, "vocab", "vocab"),
    Weight("head_bias", DECODER, "vocab", "vocab", bias_only=True, others=("lm_head",)),
)
LABELS = (
    Weight("label_dense", "classifier.dense", "replicated", "hidden", bias=True),
    Weight("label_out", "classifier.out_proj", "replicated", "labels", bias=True),
)


def architecture(config: read.Config) -> Architecture:
    """A `roberta` config as an Architecture; XLM-RoBERTa and CamemBERT differ in name only."""
    config = DEFAULTS | dict(config)
    rows, padding = read.size(config, "max_position_embeddings"), _padding(config)
    if padding + 1 >= rows:
        raise CheckpointError(
            f"config.json: {rows} positions, the first {padding + 1} of which texts do not use"
        )
    return encoder(
        config,
        bert.base("roberta.") + {MASKED_LM: HEAD, CLASSIFIER: LABELS, "": ()}[head_of(config)],
        "roberta.",
        norm_eps=float(config["layer_norm_eps"]),
        token_types=read.size(config, "type_vocab_size"),
        max_positions=rows - padding - 1,
        position_offset=padding,
        unplaced_token=padding,
    )


def _padding(config: read.Config) -> int:
    """The id of the padding token, which is also its row of the position table."""
    value = config["pad_token_id"]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CheckpointError(
            f"config.json: pad_token_id is {value!r}, expected a token id: positions begin after it"
        )
    return value
