"""Reads the rotary embedding of a config.json; refuses kinds and options that are not supported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from skynet.architecture.config import Config, refuse
from skynet.architecture.positions import Rope
from skynet.errors import CheckpointError, UnsupportedModel

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional")
FIELDS = {
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
LONGROPE_FIELDS = FIELDS | {"short_factor", "long_factor"}


def parameters(config: Config) -> Mapping[str, Any]:
    """The config's rope fields, under their old or their new name."""
    return config.get("rope_scaling") or config.get("rope_parameters") or {}


def read_rope(
    config: Config,
    dims: int,
    *,
    adjacent: bool = False,
    given: Mapping[str, Any] | None = None,
) -> Rope:
    """The rotary embedding of a config.

    Args:
        dims: rotated dimensions of a head; see `partial_dims` for families that rotate a part.
        adjacent: whether a rotated pair is two neighbours, not two numbers `dims` / 2 apart.
        given: the rope's parameters, where the config has several ropes.

    Raises:
        UnsupportedModel: a kind or an option that is not supported.
        CheckpointError: a kind without the numbers it needs.
    """
    given = parameters(config) if given is None else given
    kind = kind_of(given)
    if kind not in KINDS:
        raise UnsupportedModel(f"rope type {kind!r} is not supported; known: {list(KINDS)}")
    if kind == "longrope":
        return read_longrope(config, dims, given, adjacent=adjacent)
    _check_fields(given, FIELDS, dims)
    rope: dict[str, Any] = {
        "dims": dims,
        "kind": kind,
        "theta": _theta(config, given),
        "adjacent": adjacent,
    }
    if kind == "default":
        return Rope(**rope)
    if kind == "proportional":
        return Rope(**rope, **_proportional(given, dims))
    positions = config["max_position_embeddings"]
    if kind in ("llama3", "yarn"):
        positions = _original_positions(config, given)
    factor = given.get("factor")
    if factor is None and kind == "yarn":
        factor = config["max_position_embeddings"] / positions
    rope |= {"original_positions": positions, "factor": _number(kind, "factor", factor)}
    if kind == "llama3":
        for name in ("low_freq_factor", "high_freq_factor"):
            rope[name] = _number(kind, name, given.get(name))
    if kind == "yarn":
        rope |= {
            "beta_fast": float(given.get("beta_fast") or 32),
            "beta_slow": float(given.get("beta_slow") or 1),
            "truncate": bool(given.get("truncate", True)),
            "attention_factor": _yarn_attention_factor(given, rope["factor"]),
        }
    return Rope(**rope)


def _proportional(given: Mapping[str, Any], dims: int) -> dict[str, Any]:
    """The fields of a rope of whole heads that leaves the pairs of low frequencies as they are."""
    share = given.get("partial_rotary_factor")
    share = 1.0 if share is None else share
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise CheckpointError(
            f"config.json: rope 'proportional' has partial_rotary_factor={share!r}, expected 0 to 1"
        )
    factor = _number("proportional", "factor", given.get("factor", 1.0))
    return {"factor": factor, "rotated": int(share * dims // 2)}


def read_longrope(
    config: Config, dims: int, given: Mapping[str, Any], *, adjacent: bool = False
) -> Rope:
    """LongRoPE (Ding et al., 2024, arXiv:2402.13753).

    A sequence longer than the positions of the pretraining may have other frequencies for all of
    its tokens: when it grows beyond them, it is recomputed from its first token.
    """
    _check_fields(given, LONGROPE_FIELDS, dims)
    original = _original_positions(config, given)
    factor = given.get("factor") or config["max_position_embeddings"] / original
    attention_factor = given.get("attention_factor")
    if attention_factor is None:
        growth = math.log(max(factor, 1.0)) / math.log(original)
        attention_factor = math.sqrt(1 + growth)
    divisors = _divisors(given, "short_factor", dims)
    long_divisors = _divisors(given, "long_factor", dims)
    return Rope(
        dims=dims,
        kind="longrope",
        theta=_theta(config, given),
        adjacent=adjacent,
        factor=float(factor),
        original_positions=original,
        attention_factor=float(attention_factor),
        divisors=divisors,
        long_divisors=() if long_divisors == divisors else long_divisors,
    )


def max_positions(rope: Rope, positions: int) -> int:
    """The positions that a rope supports, in a model whose config says `positions`.

    With dynamic ropes and YaRN, configs have the positions of the pretraining; with other kinds,
    those after scaling.
    """
    if rope.kind in ("dynamic", "yarn"):
        return max(positions, int(rope.original_positions * rope.factor))
    return positions


def partial_dims(config: Config, head_dim: int, field: str = "partial_rotary_factor") -> int:
    """The rotated dimensions of a head, in families that rotate a part of each head."""
    factor = parameters(config).get("partial_rotary_factor", config.get(field))
    return int(head_dim * (1.0 if factor is None else factor))


def whole_head(config: Config, head_dim: int) -> int:
    """`head_dim`, of a family that rotates whole heads; refuses configs with a partial rope."""
    for where in (config, parameters(config)):
        refuse({"model_type": config.get("model_type"), **where}, partial_rotary_factor=1.0)
    return head_dim


def kind_of(given: Mapping[str, Any]) -> str:
    """The kind of rope in these parameters."""
    return str(given.get("rope_type", given.get("type", "default")))


def _divisors(given: Mapping[str, Any], field: str, dims: int) -> tuple[float, ...]:
    divisors = given.get(field)
    if not isinstance(divisors, list) or len(divisors) != dims // 2:
        raise CheckpointError(
            f"config.json: rope 'longrope' has {field}={divisors!r}, expected a list of "
            f"{dims // 2} numbers"
        )
    return tuple(float(divisor) for divisor in divisors)


def _theta(config: Config, given: Mapping[str, Any]) -> float:
    return float(given.get("rope_theta", config.get("rope_theta")) or 10_000.0)


def _original_positions(config: Config, given: Mapping[str, Any]) -> int:
    field = "original_max_position_embeddings"
    return int(config.get(field) or given.get(field) or config["max_position_embeddings"])


def _check_fields(given: Mapping[str, Any], known: set[str], dims: int) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise UnsupportedModel(f"rope parameters {unknown} are not supported")
    if dims % 2 or dims < 2:
        raise UnsupportedModel(
            f"rope on {dims} dimensions of a head is not supported: ropes rotate pairs"
        )


def _number(kind: str, field: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise CheckpointError(
            f"config.json: rope {kind!r} has {field}={value!r}, expected a number above 0"
        )
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
