"""Gemma 2: Gemma with norms before and after, capped scores and logits, alternating windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Weight
from skynet.models import gemma, llama

MODEL_TYPE = "gemma2"

DEFAULTS: dict[str, Any] = {
    **gemma.DEFAULTS,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
REFUSED: dict[str, Any] = gemma.REFUSED
NORMS = {
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
WEIGHTS = (
    *(weight for weight in llama.WEIGHTS if weight.role != "mlp_norm"),
    *(Weight(role, llama.LAYER + name, "replicated", "hidden") for role, name in NORMS.items()),
)


def architecture(config: read.Config) -> Architecture:
    """A `gemma2` config as an Architecture."""
    config = DEFAULTS | dict(config)
    return replace(
        decoder(config, WEIGHTS),
        attention_cap=read.cap(config, "attn_logit_softcapping"),
        logit_cap=read.cap(config, "final_logit_softcapping"),
    )


def decoder(config: read.Config, weights: tuple[Weight, ...]) -> Architecture:
    """The architecture shared by Gemma 2 and Gemma 3; `config` has all defaults."""
    config = {**config, "mlp_bias": False, "hidden_act": config["hidden_activation"]}
    arch = gemma.scaled(llama.decoder(config, weights=weights))
    return replace(
        arch,
        attention_scale=float(config["query_pre_attn_scalar"]) ** -0.5,
        windows=read.windows_by_pattern(config),
    )
