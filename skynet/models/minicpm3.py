"""MiniCPM 3: latent attention, a dense MLP, scaled embeddings, residuals and logits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.models import latent, llama

MODEL_TYPE = "minicpm3"

DEFAULTS: dict[str, Any] = {
    **latent.DEFAULTS,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "q_lora_rank": 768,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": None,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 256,
}


def architecture(config: read.Config) -> Architecture:
    """A `minicpm3` config as an Architecture."""
    config = DEFAULTS | dict(config)
    if config["v_head_dim"] is None:
        config["v_head_dim"] = read.head_dim(config, "hidden_size", "num_attention_heads")
    base, attention = latent.decoder(config, adjacent=False)
    mlp = llama.with_bias(latent.MLP, *(llama.MLP if config["mlp_bias"] else ()))
    depth, size = config["scale_depth"], config["dim_model_base"]
    return replace(
        base,
        weights=(*base.weights, *attention, *mlp),
        embed_scale=float(config["scale_emb"]),
        residual_scale=1.0 if depth is None else depth / math.sqrt(base.num_layers),
        logit_scale=1.0 if size is None else size / base.hidden_size,
    )
