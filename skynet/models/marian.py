"""Marian (OPUS-MT): BART with sinusoidal positions and no norm of the embedding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture, Weight
from skynet.architecture.positions import Sinusoids
from skynet.models.seq2seq import DEFAULTS, REFUSED, encoder_decoder, even_width

__all__ = ["MODEL_TYPE", "REFUSED", "architecture"]

MODEL_TYPE = "marian"
OWN: dict[str, Any] = {"share_encoder_decoder_embeddings": True}


def architecture(config: read.Config) -> Architecture:
    """A `marian` config as an Architecture."""
    config = DEFAULTS | OWN | dict(config)
    made = encoder_decoder(config, norms_first=False, sinusoids=Sinusoids(even_width(config) // 2))
    if config["share_encoder_decoder_embeddings"] or made.encoder is None:
        return made
    return replace(
        _with_table(made, "decoder", config.get("decoder_vocab_size") or made.vocab_size),
        encoder=_with_table(made.encoder, "encoder", made.vocab_size),
    )


def _with_table(arch: Architecture, side: str, vocab_size: int) -> Architecture:
    """The same with an embedding of its own; the decoder's is the head too."""
    name = f"model.{side}.embed_tokens"
    others = ("lm_head",) if side == "decoder" else ()
    embed = Weight("embed", name, "vocab", "vocab", others=others)
    weights = (embed, *(weight for weight in arch.weights if weight.role != "embed"))
    return replace(arch, weights=weights, vocab_size=vocab_size)
