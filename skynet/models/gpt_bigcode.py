"""GPT-BigCode, StarCoder: GPT-2 with one KV head, or Q, K and V fused by head.

Conv1D weights, as in the first SantaCoder checkpoints (`gpt2` with remote code)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Weight
from skynet.models import gpt2

MODEL_TYPE = "gpt_bigcode"

DEFAULTS: dict[str, Any] = {"activation_function": "gelu_pytorch_tanh", "multi_query": True}
REFUSED: dict[str, Any] = {"add_cross_attention": False}


def architecture(config: read.Config) -> Architecture:
    """A `gpt_bigcode` config as an Architecture."""
    config = DEFAULTS | dict(config)
    decoder, multi_query = gpt2.architecture(config), bool(config["multi_query"])
    return replace(
        decoder,
        model_type=MODEL_TYPE,
        num_kv_heads=1 if multi_query else decoder.num_heads,
        weights=tuple(_linear(weight, by_group=not multi_query) for weight in decoder.weights),
    )


def _linear(weight: Weight, by_group: bool) -> Weight:
    """The same weight, stored [out, in]; `by_group` if Q, K and V are fused so."""
    return replace(weight, transposed=False, by_group=by_group and bool(weight.fused))
