"""BART: an encoder-decoder with learned positions, biases, layer norms after each sum."""

from __future__ import annotations

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.models.seq2seq import DEFAULTS, REFUSED, Variant, encoder_decoder

__all__ = ["MODEL_TYPE", "REFUSED", "architecture"]

MODEL_TYPE = "bart"
POSITION_OFFSET = 2  # unused rows at the start of the position table


def architecture(config: read.Config) -> Architecture:
    """A `bart` config as an Architecture."""
    config = DEFAULTS | dict(config)
    variant = Variant(norms_first=False, embed_norm=True, position_offset=POSITION_OFFSET)
    return encoder_decoder(config, variant)
