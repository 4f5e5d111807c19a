"""Reads a parsed config.json: sizes, activation, rope and windows, refusing what we don't compute.

The meaning of each field is that of Transformers 5, older spellings included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from skynet.errors import CheckpointError, UnsupportedModel
from skynet.models.architecture import Rope

Config = Mapping[str, Any]

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
}
ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
ROPE_FIELDS = {
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "finetuned",
}


def size(config: Config, field: str) -> int:
    """A positive integer of the config.

    Raises:
        CheckpointError: it is missing or no positive integer.
    """
    value = config.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(
            f"config.json: {field} is {value!r}, expected a positive integer; is this a complete "
            f"{config.get('model_type')} checkpoint?"
        )
    return value


def activation(config: Config, field: str) -> str:
    """The activation's name, one of `ACTIVATIONS`' values."""
    name = config[field]
    if name not in ACTIVATIONS:
        raise UnsupportedModel(f"{field}={name!r} is not computed; known: {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def refuse(config: Config, **plain: Any) -> None:
    """Raise UnsupportedModel for each named field whose value is neither missing nor `plain`."""
    for field, value in plain.items():
        if config.get(field) not in (None, value):
            raise UnsupportedModel(
                f"{config.get('model_type')} with {field}={config[field]!r} is not computed, only "
                f"{field}={value!r}"
            )


def refuse_quantized(config: Config) -> None:
    """Raise UnsupportedModel for a checkpoint whose tensors are quantised."""
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        raise UnsupportedModel(
            f"quantization_config (quant_method={method!r}) is not computed; use the checkpoint "
            "in bfloat16 or float32"
        )


def rope(config: Config, head_dim: int) -> Rope:
    """The rotary embedding a config asks for.

    Raises:
        UnsupportedModel: a kind or an option of it that is not computed.
        CheckpointError: a kind without the numbers it needs.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    _check_rope_fields(config, given, head_dim)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise UnsupportedModel(f"rope type {kind!r} is not computed; known: {list(ROPE_KINDS)}")
    theta = given.get("rope_theta", config.get("rope_theta")) or 10_000.0
    if kind == "default":
        return Rope(theta=float(theta))
    positions = config["max_position_embeddings"]
    if kind in ("llama3", "yarn"):
        positions = (
            config.get("original_max_position_embeddings")
            or given.get("original_max_position_embeddings")
            or positions
        )
    factor = given.get("factor")
    if factor is None and kind == "yarn":
        factor = config["max_position_embeddings"] / positions
    fields: dict[str, Any] = {"factor": _number(kind, "factor", factor)}
    if kind == "llama3":
        for name in ("low_freq_factor", "high_freq_factor"):
            fields[name] = _number(kind, name, given.get(name))
    if kind == "yarn":
        fields |= {
            "beta_fast": float(given.get("beta_fast") or 32),
            "beta_slow": float(given.get("beta_slow") or 1),
            "truncate": bool(given.get("truncate", True)),
            "attention_factor": _yarn_attention_factor(given, fields["factor"]),
        }
    return Rope(kind=kind, theta=float(theta), original_positions=positions, **fields)


def _check_rope_fields(config: Config, given: Mapping[str, Any], head_dim: int) -> None:
    unknown = sorted(set(given) - ROPE_FIELDS)
    kind = given.get("rope_type", given.get("type", "default"))
    if unknown and kind in ROPE_KINDS:
        raise UnsupportedModel(f"rope parameters {unknown} are not computed")
    for where in (config, given):
        refuse({"model_type": config.get("model_type"), **where}, partial_rotary_factor=1.0)
    if head_dim % 2:
        raise UnsupportedModel(f"rope on an odd head_dim of {head_dim} is not computed")


def _number(kind: str, field: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(f"config.json: rope {kind!r} has {field}={value!r}, no factor")
    return float(value)


def _yarn_attention_factor(given: Mapping[str, Any], factor: float) -> float:
    """YaRN's temperature of the attention (Peng et al., 2023, arXiv:2309.00071, section 3.4)."""
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    mscale, mscale_all_dim = given.get("mscale"), given.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return scale(mscale) / scale(mscale_all_dim)
    return scale(1.0)


def window(config: Config) -> int:
    """The size of the sliding window where one is used."""
    value = config.get("sliding_window")
    if not isinstance(value, int) or value < 1:
        raise UnsupportedModel(f"sliding_window={value!r} is not computed: expected 1 or more")
    return value


def windows_by_layer_type(config: Config) -> tuple[int | None, ...]:
    """Windows of a family with `use_sliding_window`, `max_window_layers` and `layer_types`."""
    count = size(config, "num_hidden_layers")
    sliding = config.get("use_sliding_window") and config.get("sliding_window") is not None
    types = config.get("layer_types")
    if types is None:
        first = cast(int, config["max_window_layers"]) if sliding else count
        types = ["full_attention"] * min(first, count)
        types += ["sliding_attention"] * (count - len(types))
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UnsupportedModel(f"layer_types {unknown} are not computed")
    if len(types) != count:
        raise CheckpointError(f"config.json: {len(types)} layer_types for {count} layers")
    if "sliding_attention" in types and not sliding:
        raise UnsupportedModel("layer_types has sliding_attention, but no sliding_window is in use")
    return tuple(window(config) if kind == "sliding_attention" else None for kind in types)
