"""Phi-1, Phi-1.5 and Phi-2: layer norm, biases, partial rope, one sum per layer, a biased head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.rope import partial_dims, read_rope
from skynet.architecture.weight import Weight
from skynet.models import llama

MODEL_TYPE = "phi"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": False,
}
REFUSED: dict[str, Any] = {"tie_word_embeddings": False}

LAYER = llama.LAYER
WEIGHTS = (
    Weight("embed", "model.embed_tokens", "vocab", "vocab"),
    Weight("attn_norm", LAYER + "input_layernorm", "replicated", "hidden", bias=True),
    Weight("q", LAYER + "self_attn.q_proj", "column", "heads", bias=True),
    Weight("k", LAYER + "self_attn.k_proj", "column", "kv_heads", bias=True),
    Weight("v", LAYER + "self_attn.v_proj", "column", "kv_heads", bias=True),
    Weight("o", LAYER + "self_attn.dense", "row", "heads", bias=True),
    Weight("up", LAYER + "mlp.fc1", "column", "columns", bias=True),
    Weight("down", LAYER + "mlp.fc2", "row", "columns", bias=True),
    Weight("final_norm", "model.final_layernorm", "replicated", "hidden", bias=True),
    Weight("head", "lm_head", "vocab", "vocab", bias=True),
)
HEAD_NORMS = (
    Weight("q_norm", LAYER + "self_attn.q_layernorm", "replicated", "head_dim", bias=True),
    Weight("k_norm", LAYER + "self_attn.k_layernorm", "replicated", "head_dim", bias=True),
)


def architecture(config: read.Config) -> Architecture:
    """A `phi` config as an Architecture."""
    config = DEFAULTS | dict(config) | {"attention_bias": False, "mlp_bias": False}
    head_dim = read.head_dim(config, "hidden_size", "num_attention_heads")
    config["head_dim"] = None  # not a field of this family
    decoder = llama.decoder(config, read_rope(config, partial_dims(config, head_dim)), WEIGHTS)
    return replace(
        decoder,
        norm="layer",
        norm_eps=float(config["layer_norm_eps"]),
        gated=False,
        parallel=True,
        qk_norm="head" if config["qk_layernorm"] else None,
        weights=WEIGHTS + (HEAD_NORMS if config["qk_layernorm"] else ()),
    )
