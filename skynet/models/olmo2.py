"""OLMo 2: Llama with norms after attention and MLP, and norms over all query and all key heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Weight
from skynet.models import llama

MODEL_TYPE = "olmo2"

DEFAULTS: dict[str, Any] = {**llama.DEFAULTS, "rms_norm_eps": 1e-5}

NORMS = (
    Weight("q_norm", llama.LAYER + "self_attn.q_norm", "column", "heads"),
    Weight("k_norm", llama.LAYER + "self_attn.k_norm", "column", "kv_heads"),
    Weight("attn_post_norm", llama.LAYER + "post_attention_layernorm", "replicated", "hidden"),
    Weight("mlp_post_norm", llama.LAYER + "post_feedforward_layernorm", "replicated", "hidden"),
)
WEIGHTS = (
    *(weight for weight in llama.WEIGHTS if weight.role not in ("attn_norm", "mlp_norm")),
    *NORMS,
)


def architecture(config: read.Config) -> Architecture:
    """An `olmo2` config as an Architecture."""
    config = DEFAULTS | dict(config) | {"mlp_bias": False}
    return replace(llama.decoder(config, weights=WEIGHTS), qk_norm="all")
