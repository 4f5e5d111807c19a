"""Pegasus: mBART with sinusoidal positions and without the embedding's norm."""

from __future__ import annotations

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Sinusoids
from skynet.models.seq2seq import DEFAULTS, REFUSED, Variant, encoder_decoder, even_width

__all__ = ["MODEL_TYPE", "REFUSED", "architecture"]

MODEL_TYPE = "pegasus"


def architecture(config: read.Config) -> Architecture:
    """A `pegasus` config as an Architecture."""
    config = DEFAULTS | dict(config)
    sinusoids = Sinusoids(even_width(config) // 2)
    return encoder_decoder(config, Variant(norms_first=True, sinusoids=sinusoids))
