"""Mamba-2 as several families have it: its dimensions and weights."""

from __future__ import annotations

from math import inf
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.architecture import Dim, Weight
from skynet.architecture.mixers import Mamba2
from skynet.errors import CheckpointError, UnsupportedModel

DEFAULTS: dict[str, Any] = {
    "mamba_n_heads": 128,
    "mamba_d_head": "auto",
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "time_step_limit": (0.0, inf),
}
IN = ("mamba_z", "mamba_x", "mamba_b", "mamba_c", "mamba_dt")
CONVOLUTION = ("mamba_conv_x", "mamba_conv_b", "mamba_conv_c")
UNITS = {"z": "mamba_heads", "x": "mamba_heads", "b": "mamba_groups", "c": "mamba_groups"}


def mixer(config: read.Config, channels: int) -> tuple[Mamba2, dict[str, Dim]]:
    """The mixer and the dimensions of a config with the fields of Bamba.

    channels: of all heads together.

    Raises:
        CheckpointError: heads that do not make up the channels.
    """
    heads, size = read.size(config, "mamba_n_heads"), config["mamba_d_head"]
    size = channels // heads if size == "auto" else read.size(config, "mamba_d_head")
    if size * heads != channels:
        raise CheckpointError(
            f"config.json: {heads} Mamba heads of {size} channels are not {channels} channels"
        )
    made = Mamba2(
        head_size=size,
        state_size=read.size(config, "mamba_d_state"),
        kernel=read.size(config, "mamba_d_conv"),
        activation=read.activation(config, "hidden_act"),
        step_limits=limits(config["time_step_limit"]),
    )
    return made, dims(heads, read.size(config, "mamba_n_groups"), made)


def dims(heads: int, groups: int, made: Mamba2) -> dict[str, Dim]:
    """The dimensions that shards divide.

    Raises:
        UnsupportedModel: heads do not share groups evenly.
    """
    if heads % groups:
        raise UnsupportedModel(f"{heads} Mamba heads cannot share {groups} groups evenly")
    return {
        "mamba_heads": Dim(heads, made.head_size),
        "mamba_groups": Dim(groups, made.state_size, "mamba_heads"),
        "mamba_steps": Dim(heads, 1, "mamba_heads"),
    }


def limits(given: Any) -> tuple[float, float]:
    """Limits of time steps; Transformers writes infinity as {"__float__": "Infinity"}."""
    if given is None:
        return 0.0, inf
    low, high = (each["__float__"] if isinstance(each, dict) else each for each in given)
    return float(low), float(high)


def biases(config: read.Config) -> dict[str, Any]:
    """Which weights of the mixer have biases."""
    return {
        "conv_bias": bool(config["mamba_conv_bias"]),
        "in_bias": bool(config["mamba_proj_bias"]),
        "out_bias": bool(config["mamba_proj_bias"]),
    }


def weights(
    prefix: str,
    made: Mamba2,
    *,
    conv_bias: bool,
    in_bias: bool,
    out_bias: bool,
    scales: tuple[float, ...] = (1.0,) * 6,
) -> tuple[Weight, ...]:
    """The weights of a layer's mixer.

    prefix: of their names.
    scales: of z, x, B, C, the time steps and the output.
    """
    units = [*UNITS.values(), "mamba_steps"]
    inputs = (
        Weight(role, prefix + "in_proj", "column", unit, bias=in_bias, fused=IN, scale=scale)
        for role, unit, scale in zip(IN, units, scales[:5], strict=True)
    )
    convolution = (
        Weight(
            role,
            prefix + "conv1d",
            "column",
            unit,
            bias=conv_bias,
            fused=CONVOLUTION,
            inner=(1, made.kernel),
            float32=True,
        )
        for role, unit in zip(CONVOLUTION, units[1:4], strict=True)
    )
    steps = (
        _vector(role, prefix + name, "mamba_steps", bare=True)
        for role, name in (("mamba_a", "A_log"), ("mamba_d", "D"), ("mamba_dt_bias", "dt_bias"))
    )
    norm = (_vector("mamba_norm", prefix + "norm", "mamba_heads"),) if made.norm else ()
    out = Weight(
        "mamba_out", prefix + "out_proj", "row", "mamba_heads", bias=out_bias, scale=scales[5]
    )
    return (*inputs, *convolution, *steps, *norm, out)


def _vector(role: str, name: str, unit: str, bare: bool = False) -> Weight:
    return Weight(role, name, "column", unit, bare=bare, inner=(), float32=True)
