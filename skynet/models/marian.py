"""Marian (OPUS-MT): BART with sinusoidal positions and without the embedding's norm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.positions import Sinusoids
from skynet.architecture.weight import Weight
from skynet.models.seq2seq import DEFAULTS, REFUSED, Variant, encoder_decoder, even_width

__all__ = ["MODEL_TYPE", "REFUSED", "architecture"]

MODEL_TYPE = "marian"
CHANGED_DEFAULTS: dict[str, Any] = {"share_encoder_decoder_embeddings": True}


def architecture(config: read.Config) -> Architecture:
    """A `marian` config as an Architecture."""
    config = DEFAULTS | CHANGED_DEFAULTS | dict(config)
    sinusoids = Sinusoids(even_width(config) // 2)
    arch = encoder_decoder(config, Variant(norms_first=False, sinusoids=sinusoids))
    if config["share_encoder_decoder_embeddings"] or arch.encoder is None:
        return arch
    return replace(
        _with_table(arch, "decoder", config.get("decoder_vocab_size") or arch.vocab_size),
        encoder=_with_table(arch.encoder, "encoder", arch.vocab_size),
    )


def _with_table(arch: Architecture, side: str, vocab_size: int) -> Architecture:
    """`arch` with a separate embedding for this side; the decoder's is also the head."""
    name = f"model.{side}.embed_tokens"
    others = ("lm_head",) if side == "decoder" else ()
    embed = Weight("embed", name, "vocab", "vocab", others=others)
    weights = (embed, *(weight for weight in arch.weights if weight.role != "embed"))
    return replace(arch, weights=weights, vocab_size=vocab_size)
