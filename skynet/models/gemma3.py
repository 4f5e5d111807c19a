"""Gemma 3 (text) and EmbeddingGemma: Gemma 2 without capped scores, normed heads, two ropes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture, Weight
from skynet.architecture.positions import Rope
from skynet.architecture.rope import read_rope
from skynet.errors import UnsupportedModel
from skynet.models import gemma2, llama

MODEL_TYPE = "gemma3_text"

DEFAULTS: dict[str, Any] = {
    **gemma2.DEFAULTS,
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}
REFUSED: dict[str, Any] = {"attn_logit_softcapping": None}
WEIGHTS = (
    *gemma2.WEIGHTS,
    Weight("q_norm", llama.LAYER + "self_attn.q_norm", "replicated", "head_dim"),
    Weight("k_norm", llama.LAYER + "self_attn.k_norm", "replicated", "head_dim"),
)


def architecture(config: read.Config) -> Architecture:
    """A `gemma3_text` config as an Architecture."""
    config = DEFAULTS | dict(config)
    full, local = _ropes(config)
    plain = {**config, "rope_parameters": None, "rope_scaling": None}
    decoder = gemma2.decoder(plain, WEIGHTS)  # the config has the positions after scaling
    if bidirectional(config):
        decoder = _encoder(decoder)
    return replace(
        decoder,
        qk_norm="head",
        ropes=tuple(full if window is None else local for window in decoder.windows),
        logit_cap=read.cap(config, "final_logit_softcapping"),
    )


def bidirectional(config: read.Config) -> bool:
    """Whether tokens see later ones, as in EmbeddingGemma.

    Raises:
        UnsupportedModel: only some tokens do.
    """
    value = config.get("use_bidirectional_attention")
    if value not in (None, False, True):
        raise UnsupportedModel(f"use_bidirectional_attention={value!r} is not supported")
    return bool(value)


def _encoder(decoder: Architecture) -> Architecture:
    """The decoder as an encoder: without a head, and half of a window lies in each direction."""
    return replace(
        decoder,
        bidirectional=True,
        windows=tuple(size // 2 if isinstance(size, int) else None for size in decoder.windows),
        weights=tuple(weight for weight in decoder.weights if weight.role != "head"),
    )


def _ropes(config: read.Config) -> tuple[Rope, Rope]:
    """The ropes of layers with full attention, and of layers with a window."""
    given: Mapping[str, Any] = config.get("rope_parameters") or {}
    full = {**(given.get("full_attention") or {}), **(config.get("rope_scaling") or {})}
    local = given.get("sliding_attention") or {}
    full.setdefault("rope_theta", config["rope_theta"])
    local = {"rope_theta": config["rope_local_base_freq"], **local}
    head_dim = config["head_dim"]
    return read_rope(config, head_dim, given=full), read_rope(config, head_dim, given=local)
