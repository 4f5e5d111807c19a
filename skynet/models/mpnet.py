"""MPNet: RoBERTa with relative position buckets, without token types."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Relative
from skynet.architecture.weight import Weight
from skynet.errors import CheckpointError
from skynet.models import bert, encoder, roberta
from skynet.models.encoder import CLASSIFIER, MASKED_LM, head_of

__all__ = ["MODEL_TYPE", "REFUSED", "architecture"]

MODEL_TYPE = "mpnet"

# Transformers computes 32 buckets, whatever the config says.
REFUSED: dict[str, Any] = {**encoder.REFUSED, "relative_attention_num_buckets": 32}
PADDING = 1  # the padding token's id and row of the position table, not fields of the config
RELATIVE = Relative(buckets=32, max_distance=128)

LAYER = "mpnet.encoder.layer.{layer}."
ATTENTION = {
    "q": Weight("q", LAYER + "attention.attn.q", "column", "heads", bias=True),
    "k": Weight("k", LAYER + "attention.attn.k", "column", "kv_heads", bias=True),
    "v": Weight("v", LAYER + "attention.attn.v", "column", "kv_heads", bias=True),
    "o": Weight("o", LAYER + "attention.attn.o", "row", "heads", bias=True),
    "attn_sum_norm": Weight(
        "attn_sum_norm", LAYER + "attention.LayerNorm", "replicated", "hidden", bias=True
    ),
}
WEIGHTS = (
    *(
        ATTENTION.get(weight.role, weight)
        for weight in bert.base("mpnet.")
        if weight.role != "token_types"
    ),
    Weight("relative", "mpnet.encoder.relative_attention_bias", "replicated", "buckets"),
)


def architecture(config: read.Config) -> Architecture:
    """An `mpnet` config as an Architecture."""
    config = bert.DEFAULTS | dict(config)
    rows = read.size(config, "max_position_embeddings")
    if rows <= PADDING + 1:
        raise CheckpointError(
            f"config.json: {rows} positions, the first {PADDING + 1} of which texts do not use"
        )
    heads = {MASKED_LM: roberta.HEAD, CLASSIFIER: roberta.LABELS, "": ()}
    return encoder.encoder(
        config,
        WEIGHTS + heads[head_of(config)],
        "mpnet.",
        norm_eps=float(config["layer_norm_eps"]),
        max_positions=rows - PADDING - 1,
        position_offset=PADDING,
        unplaced_token=PADDING,
        relative=RELATIVE,
    )
