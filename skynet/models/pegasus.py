"""Pegasus: mBART with sinusoidal positions and no norm of the embedding."""

from __future__ import annotations

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Sinusoids
from skynet.models.seq2seq import DEFAULTS, REFUSED, encoder_decoder, even_width

__all__ = ["MODEL_TYPE", "REFUSED", "architecture"]

MODEL_TYPE = "pegasus"


def architecture(config: read.Config) -> Architecture:
    """A `pegasus` config as an Architecture."""
    config = DEFAULTS | dict(config)
    return encoder_decoder(config, norms_first=True, sinusoids=Sinusoids(even_width(config) // 2))
