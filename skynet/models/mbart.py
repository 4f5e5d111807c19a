"""mBART and mBART-50: BART with norms before attention and MLP, and one after the last layer."""

from __future__ import annotations

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.models.bart import POSITION_OFFSET
from skynet.models.seq2seq import DEFAULTS, REFUSED, Variant, encoder_decoder

__all__ = ["MODEL_TYPE", "REFUSED", "architecture"]

MODEL_TYPE = "mbart"


def architecture(config: read.Config) -> Architecture:
    """An `mbart` config as an Architecture."""
    config = DEFAULTS | dict(config)
    variant = Variant(norms_first=True, embed_norm=True, position_offset=POSITION_OFFSET)
    return encoder_decoder(config, variant)
