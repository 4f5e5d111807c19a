"""Command R7B and Command A: Command R with windows; only layers with a window have rope."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.models import cohere

MODEL_TYPE = "cohere2"

DEFAULTS: dict[str, Any] = {
    **cohere.DEFAULTS,
    "rope_theta": 10_000.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
}
REFUSED: dict[str, Any] = {"use_qk_norm": False}


def architecture(config: read.Config) -> Architecture:
    """A `cohere2` config as an Architecture."""
    config = DEFAULTS | dict(config)
    arch, windows = cohere.decoder(config), read.windows_by_pattern(config)
    ropes = tuple(
        rope if window is not None else None
        for rope, window in zip(arch.ropes, windows, strict=True)
    )
    return replace(arch, windows=windows, ropes=ropes)
