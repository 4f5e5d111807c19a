"""M2M-100 and NLLB-200 (dense): mBART with sinusoidal positions and no norm of the embedding."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Sinusoids
from skynet.models.seq2seq import DEFAULTS, encoder_decoder, even_width
from skynet.models.seq2seq import REFUSED as SHARED_REFUSED

MODEL_TYPE = "m2m_100"
OWN: dict[str, Any] = {"activation_function": "relu", "scale_embedding": True}
PADDING = 1  # positions begin after its number
REFUSED: dict[str, Any] = {**SHARED_REFUSED, "pad_token_id": PADDING}


def architecture(config: read.Config) -> Architecture:
    """An `m2m_100` config as an Architecture."""
    config = DEFAULTS | OWN | dict(config)
    return encoder_decoder(
        config,
        norms_first=True,
        sinusoids=Sinusoids(even_width(config) // 2 - 1, single=True),
        position_offset=PADDING + 1,
        head_bias=False,
        unplaced_token=PADDING,
    )
