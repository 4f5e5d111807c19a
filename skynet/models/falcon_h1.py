"""Falcon-H1: attention and Mamba-2 beside each other in every layer, with multipliers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture, Weight
from skynet.architecture.mixers import SELF_ATTENTION
from skynet.errors import UnsupportedModel
from skynet.models import bamba, llama, mamba2

MODEL_TYPE = "falcon_h1"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    **mamba2.DEFAULTS,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "mamba_d_ssm": 1024,
    "mamba_norm_before_gate": True,
    "mamba_rms_norm": False,
    "projectors_bias": False,
    "lm_head_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "mlp_multipliers": None,
    "key_multiplier": 1.0,
    "attention_out_multiplier": 1.0,
    "attention_in_multiplier": 1.0,
    "ssm_multipliers": None,
    "ssm_in_multiplier": 1.0,
    "ssm_out_multiplier": 1.0,
}


def architecture(config: read.Config) -> Architecture:
    """A `falcon_h1` config as an Architecture."""
    config = DEFAULTS | dict(config)
    _refuse_biases(config)
    base = llama.decoder(config, weights=())
    channels = config["mamba_d_ssm"] or config["mamba_expand"] * base.hidden_size
    mixer, dims = mamba2.mixer(config, channels)
    mixer = replace(mixer, norm=_norm(config))
    inside = float(config["ssm_in_multiplier"])
    scales = [inside * each for each in config["ssm_multipliers"] or [1.0] * 5]
    of_mixer = mamba2.weights(
        bamba.LAYER + "mamba.",
        mixer,
        **mamba2.biases(config) | {"out_bias": bool(config["projectors_bias"])},
        scales=(*scales, float(config["ssm_out_multiplier"])),
    )
    weights = (*bamba.OUTSIDE, *bamba.ATTENTION, *of_mixer, *bamba.MLP)
    tied = llama.decoder(config, weights=weights).weights  # with biases of attention and MLP
    of_attention = float(config["attention_in_multiplier"])
    return replace(
        base,
        mixers=(SELF_ATTENTION, mixer),
        dims=dims,
        weights=_scaled(tied, config),
        embed_scale=float(config["embedding_multiplier"]),
        logit_scale=float(config["lm_head_multiplier"]),
        attention_scale=base.attention_scale * of_attention**2 * float(config["key_multiplier"]),
    )


def _scaled(weights: tuple[Weight, ...], config: read.Config) -> tuple[Weight, ...]:
    """The weights with the multipliers of attention and MLP.

    That of attention's input is applied after it: to the scores, and to the output.
    """
    gate, down = config["mlp_multipliers"] or (1.0, 1.0)
    attention = config["attention_in_multiplier"] * config["attention_out_multiplier"]
    scales = {"gate": float(gate), "down": float(down), "o": float(attention)}
    return tuple(
        replace(weight, scale=scales[weight.role]) if weight.role in scales else weight
        for weight in weights
    )


def _norm(config: read.Config) -> Literal["before_gate", "after_gate"] | None:
    if not config["mamba_rms_norm"]:
        return None
    return "before_gate" if config["mamba_norm_before_gate"] else "after_gate"


def _refuse_biases(config: read.Config) -> None:
    """Multipliers of inputs are applied to outputs, where a bias would be multiplied too."""
    for bias, multiplier in (
        ("attention_bias", "attention_in_multiplier"),
        ("mamba_proj_bias", "ssm_in_multiplier"),
    ):
        if config[bias] and config[multiplier] != 1:
            raise UnsupportedModel(
                f"falcon_h1 with {bias}=True and {multiplier}={config[multiplier]!r} is not "
                f"supported, only {multiplier}=1"
            )
