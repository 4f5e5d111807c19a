"""gpt-oss: attention sinks, windows in every other layer, biases, and experts with clamped gates.

Files have the experts as MXFP4, whose numbers stay as they are in 8 bits, or unpacked.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Architecture
from skynet.architecture.gate import ClampedGate
from skynet.architecture.packed import Packed
from skynet.architecture.router import Router
from skynet.architecture.weight import Dim, Weight
from skynet.models import llama

MODEL_TYPE = "gpt_oss"

DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "head_dim": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150_000.0,
    "sliding_window": 128,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "attention_bias": True,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
}
ROPE: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
REFUSED: dict[str, Any] = {"hidden_act": "silu"}

MLP = llama.LAYER + "mlp."
EXPERT = MLP + "experts.{piece}."
IN = Packed(
    MLP + "experts.gate_up_proj",
    MLP + "experts.gate_up_proj_bias",
    transposed=True,
    parts=2,
    interleaved=True,
)
OUT = Packed(MLP + "experts.down_proj", MLP + "experts.down_proj_bias", transposed=True)
MIXTURE = {
    "gate": Weight("gate", EXPERT + "gate_proj", "column", "columns", bias=True, packed=IN),
    "up": Weight(
        "up", EXPERT + "up_proj", "column", "columns", bias=True, packed=replace(IN, part=1)
    ),
    "down": Weight("down", EXPERT + "down_proj", "row", "columns", bias=True, packed=OUT),
}
SINKS = "sinks"
WEIGHTS = (
    *(MIXTURE.get(weight.role, weight) for weight in llama.WEIGHTS),
    Weight("router", MLP + "router", "replicated", "experts", bias=True),
    Weight(
        "sinks",
        llama.LAYER + "self_attn.sinks",
        "column",
        SINKS,
        inner=(),
        bare=True,
        float32=True,
    ),
)


def architecture(config: read.Config) -> Architecture:
    """A `gpt_oss` config as an Architecture."""
    config = DEFAULTS | dict(config) | {"mlp_bias": False}
    if not config.get("rope_scaling") and not config.get("rope_parameters"):
        config["rope_parameters"] = ROPE
    decoder = llama.decoder(config, weights=WEIGHTS)
    mixture = read.experts(config, "num_local_experts") | {"router": Router(score="chosen")}
    return replace(
        decoder,
        windows=read.windows_by_pattern({**config, "sliding_window_pattern": 2}),
        gate=ClampedGate(float(config["swiglu_limit"]), float(config["swiglu_alpha"])),
        dims={SINKS: Dim(decoder.num_heads, serves="heads")},
        **mixture,
    )
