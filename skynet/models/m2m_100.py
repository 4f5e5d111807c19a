"""M2M-100 and NLLB-200 (dense): mBART with sinusoidal positions, without the embedding's norm."""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Sinusoids
from skynet.models.seq2seq import DEFAULTS, Variant, encoder_decoder, even_width
from skynet.models.seq2seq import REFUSED as SHARED_REFUSED

MODEL_TYPE = "m2m_100"
CHANGED_DEFAULTS: dict[str, Any] = {"activation_function": "relu", "scale_embedding": True}
PADDING = 1  # token id; positions begin after it
REFUSED: dict[str, Any] = {**SHARED_REFUSED, "pad_token_id": PADDING}


def architecture(config: read.Config) -> Architecture:
    """An `m2m_100` config as an Architecture."""
    config = DEFAULTS | CHANGED_DEFAULTS | dict(config)
    variant = Variant(
        norms_first=True,
        sinusoids=Sinusoids(even_width(config) // 2 - 1, single=True),
        position_offset=PADDING + 1,
        head_bias=False,
        unplaced_token=PADDING,
    )
    return encoder_decoder(config, variant)
