"""Qwen3.5 (mixture of experts, text): Qwen3.5 with experts, and an MLP that all tokens share.

layers that predict several tokens (MTP) are ignored
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.packed import Packed
from skynet.models import llama, qwen3_5, qwen3_moe, qwen3_next

MODEL_TYPE = "qwen3_5_moe_text"

DEFAULTS: dict[str, Any] = {
    **qwen3_next.DEFAULTS,
    "num_experts": 256,
    "num_experts_per_tok": 8,
}
REFUSED: dict[str, Any] = {**qwen3_next.REFUSED, "norm_topk_prob": True, "mlp_only_layers": []}
IN, OUT = (llama.LAYER + f"mlp.experts.{name}" for name in ("gate_up_proj", "down_proj"))
PACKED = {
    "gate": Packed(IN, part=0, parts=2),
    "up": Packed(IN, part=1, parts=2),
    "down": Packed(OUT),
}
MIXTURE = tuple(replace(weight, packed=PACKED[role]) for role, weight in qwen3_moe.MIXTURE.items())


def architecture(config: read.Config) -> Architecture:
    """A `qwen3_5_moe_text` config as an Architecture."""
    config = DEFAULTS | dict(config)
    return qwen3_next.decoder(config, qwen3_5.delta(config), MIXTURE)
