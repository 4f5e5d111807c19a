"""Qwen3 (dense): Llama with an RMS norm on each query and key head, and Qwen2's windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Weight
from skynet.models import llama, qwen2

MODEL_TYPE = "qwen3"

DEFAULTS: dict[str, Any] = {**qwen2.DEFAULTS, "head_dim": 128}

HEAD_NORMS = (
    Weight("q_norm", llama.LAYER + "self_attn.q_norm", "replicated", "head_dim"),
    Weight("k_norm", llama.LAYER + "self_attn.k_norm", "replicated", "head_dim"),
)


def architecture(config: read.Config) -> Architecture:
    """A `qwen3` config as an Architecture."""
    config = DEFAULTS | dict(config) | {"mlp_bias": False}
    decoder = llama.decoder(config)
    return replace(
        decoder,
        qk_norm="head",
        windows=read.windows_by_layer_type(config),
        weights=decoder.weights + HEAD_NORMS,
    )
