"""EXAONE 3 and 3.5: Llama with other names of tensors and config fields."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.models import llama

MODEL_TYPE = "exaone"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
}
# Llama's names of the config's fields.
NAMES = {
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "rms_norm_eps",
    "num_layers": "num_hidden_layers",
}

LAYER = "transformer.h.{layer}."
TENSORS = {
    "embed": "transformer.wte",
    "attn_norm": LAYER + "ln_1",
    "q": LAYER + "attn.attention.q_proj",
    "k": LAYER + "attn.attention.k_proj",
    "v": LAYER + "attn.attention.v_proj",
    "o": LAYER + "attn.attention.out_proj",
    "mlp_norm": LAYER + "ln_2",
    "gate": LAYER + "mlp.c_fc_0",
    "up": LAYER + "mlp.c_fc_1",
    "down": LAYER + "mlp.c_proj",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}
WEIGHTS = tuple(replace(weight, name=TENSORS[weight.role]) for weight in llama.WEIGHTS)


def architecture(config: read.Config) -> Architecture:
    """An `exaone` config as an Architecture."""
    renamed = {NAMES.get(name, name): value for name, value in config.items()}
    decoder = llama.decoder(DEFAULTS | renamed, weights=WEIGHTS)
    return replace(decoder, prefixes=("transformer.", ""))
