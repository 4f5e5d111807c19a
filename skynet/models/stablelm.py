"""StableLM 2 and 3B: Llama with layer norms, partial rope, and optionally one sum per layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.rope import partial_dims, read_rope
from skynet.architecture.weight import Weight
from skynet.models import llama

MODEL_TYPE = "stablelm"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
}
NORMS = ("attn_norm", "mlp_norm", "final_norm")
HEAD_NORMS = (
    Weight("q_norm", llama.LAYER + "self_attn.q_layernorm.norms.{piece}", "column", "heads"),
    Weight("k_norm", llama.LAYER + "self_attn.k_layernorm.norms.{piece}", "column", "kv_heads"),
)


def architecture(config: read.Config) -> Architecture:
    """A `stablelm` config as an Architecture."""
    config = DEFAULTS | dict(config) | {"attention_bias": False, "mlp_bias": False}
    head_dim = read.head_dim(config, "hidden_size", "num_attention_heads")
    config["head_dim"] = None  # not a field of this family
    decoder = llama.decoder(config, read_rope(config, partial_dims(config, head_dim)))
    parallel = bool(config["use_parallel_residual"])
    weights = llama.with_bias(decoder.weights, *NORMS)
    if config["use_qkv_bias"]:
        weights = llama.with_bias(weights, "q", "k", "v")
    if parallel:
        weights = tuple(weight for weight in weights if weight.role != "mlp_norm")
    return replace(
        decoder,
        norm="layer",
        norm_eps=float(config["layer_norm_eps"]),
        qk_norm="head" if config["qk_layernorm"] else None,
        parallel=parallel,
        weights=weights + (HEAD_NORMS if config["qk_layernorm"] else ()),
    )
