"""mT5: T5 1.1 with a multilingual vocabulary.

sequences have no limit in the config: `--slot-tokens` sets one
"""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.models import t5

MODEL_TYPE = "mt5"

REFUSED = t5.REFUSED
CHANGED_DEFAULTS: dict[str, Any] = {"feed_forward_proj": "gated-gelu"}


def architecture(config: read.Config) -> Architecture:
    """An `mt5` config as an Architecture."""
    return t5.encoder_decoder(
        t5.DEFAULTS | CHANGED_DEFAULTS | dict(config) | {"scale_decoder_outputs": False}
    )
