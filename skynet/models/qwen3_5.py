"""Qwen3.5 (dense, text): Qwen3-Next with a dense MLP, and other tensors of the delta nets.

layers that predict several tokens (MTP) are ignored
"""

from __future__ import annotations

from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Weight
from skynet.models import gated_delta, qwen3_next

MODEL_TYPE = "qwen3_5_text"

DEFAULTS: dict[str, Any] = {
    **qwen3_next.DEFAULTS,
    "num_key_value_heads": 4,
    "intermediate_size": 12288,
    "num_experts": 0,
}
REFUSED: dict[str, Any] = qwen3_next.REFUSED


def architecture(config: read.Config) -> Architecture:
    """A `qwen3_5_text` config as an Architecture."""
    config = DEFAULTS | dict(config)
    return qwen3_next.decoder(config, delta(config))


def delta(config: read.Config) -> tuple[Weight, ...]:
    """The weights of a delta net of Qwen3.5."""
    qkv = ("delta_q", "delta_k", "delta_v")
    return (
        *(gated_delta.projection(role, "in_proj_qkv", fused=qkv) for role in qkv),
        gated_delta.projection("delta_z", "in_proj_z"),
        gated_delta.gate("delta_beta", "in_proj_b"),
        gated_delta.gate("delta_decay", "in_proj_a"),
        *gated_delta.fused_convolution(read.size(config, "linear_conv_kernel_dim")),
        *gated_delta.others("norm", "out_proj"),
    )
