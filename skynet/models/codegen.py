"""CodeGen: GPT-J with Q, V and K fused in four blocks of heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Weight
from skynet.errors import UnsupportedModel
from skynet.models import gptj

MODEL_TYPE = "codegen"

REFUSED: dict[str, Any] = gptj.REFUSED
BLOCKS = 4  # machines of the training, in which the fused tensor was cut
LAYER = gptj.LAYER
QKV: dict[str, Any] = {"fused": ("q", "v", "k"), "by_group": True, "groups": BLOCKS}
FUSED = {
    "q": Weight("q", LAYER + "attn.qkv_proj", "column", "heads", **QKV),
    "k": Weight("k", LAYER + "attn.qkv_proj", "column", "kv_heads", **QKV),
    "v": Weight("v", LAYER + "attn.qkv_proj", "column", "kv_heads", **QKV),
}


def architecture(config: read.Config) -> Architecture:
    """A `codegen` config as an Architecture."""
    heads = read.size(config, "n_head")
    if heads % BLOCKS:
        raise UnsupportedModel(f"codegen with n_head={heads}: not a multiple of {BLOCKS}")
    decoder = gptj.architecture(config)
    weights = tuple(FUSED.get(weight.role, weight) for weight in decoder.weights)
    return replace(decoder, model_type=MODEL_TYPE, weights=weights)
