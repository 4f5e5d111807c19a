"""Command R: layer norms without bias, rope of adjacent pairs, one sum per layer, scaled logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.rope import read_rope, whole_head
from skynet.architecture.weight import Weight
from skynet.models import llama

MODEL_TYPE = "cohere"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "use_qk_norm": False,
}
WEIGHTS = tuple(weight for weight in llama.WEIGHTS if weight.role != "mlp_norm")
HEAD_NORMS = (
    Weight("q_norm", llama.LAYER + "self_attn.q_norm", "column", "heads", by_head=True),
    Weight("k_norm", llama.LAYER + "self_attn.k_norm", "column", "kv_heads", by_head=True),
)


def architecture(config: read.Config) -> Architecture:
    """A `cohere` config as an Architecture."""
    config = DEFAULTS | dict(config)
    arch = decoder(config)
    if not config["use_qk_norm"]:
        return arch
    return replace(arch, qk_norm="head", weights=arch.weights + HEAD_NORMS)


def decoder(config: read.Config) -> Architecture:
    """The architecture shared by Command R and its successors; `config` has all defaults."""
    head_dim = read.head_dim(config, "hidden_size", "num_attention_heads")
    config = {**config, "mlp_bias": False, "head_dim": head_dim}
    rope = read_rope(config, whole_head(config, head_dim), adjacent=True)
    return replace(
        llama.decoder(config, rope, WEIGHTS),
        norm="layer",
        norm_eps=float(config["layer_norm_eps"]),
        parallel=True,
        logit_scale=float(config["logit_scale"]),
    )
