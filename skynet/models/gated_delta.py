"""Shared by the families with gated delta nets: sizes of the heads, and names of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skynet.architecture import config as read
from skynet.architecture.mixers import GatedDelta
from skynet.architecture.weight import Dim, Weight
from skynet.errors import UnsupportedModel
from skynet.models import llama

TYPES = ("linear_attention", "full_attention")
DEFAULTS: dict[str, Any] = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
LAYER = llama.LAYER + "linear_attn."
# The unit of each role that has channels of heads.
UNITS = {"q": "key_heads", "k": "key_heads", "v": "value_heads", "z": "value_heads"}


def mixer(config: read.Config, norm_eps: float, beta_scale: float = 1.0) -> GatedDelta:
    """The delta net of a config with all defaults."""
    return GatedDelta(
        read.size(config, "linear_conv_kernel_dim"),
        read.size(config, "linear_key_head_dim"),
        read.size(config, "linear_value_head_dim"),
        beta_scale,
        norm_eps,
    )


def dims(config: read.Config) -> dict[str, Dim]:
    """The dimensions that its weights are cut in.

    Raises:
        UnsupportedModel: value heads cannot share key heads evenly.
    """
    values, keys = (read.size(config, f"linear_num_{name}_heads") for name in ("value", "key"))
    if values % keys:
        raise UnsupportedModel(f"{values} value heads cannot share {keys} key heads evenly")
    value_dim = read.size(config, "linear_value_head_dim")
    return {
        "value_heads": Dim(values, value_dim),
        "key_heads": Dim(keys, read.size(config, "linear_key_head_dim"), serves="value_heads"),
        "gates": Dim(values, serves="value_heads"),
        "value_dim": Dim(value_dim),
    }


def projection(role: str, name: str, **form: Any) -> Weight:
    """The weight of `delta_q`, `delta_k`, `delta_v` or `delta_z`. form: how it is fused."""
    return Weight(role, LAYER + name, "column", UNITS[role[-1]], **form)


def gate(role: str, name: str, **form: Any) -> Weight:
    """The weight of `delta_beta` or `delta_decay`, a number for each value head."""
    return Weight(role, LAYER + name, "column", "gates", float32=True, **form)


def convolution(role: str, name: str, kernel: int, **form: Any) -> Weight:
    """The weight of `conv_q`, `conv_k` or `conv_v`."""
    unit = UNITS[role[-1]]
    return Weight(role, LAYER + name, "column", unit, inner=(1, kernel), float32=True, **form)


def others(norm: str, out: str) -> tuple[Weight, ...]:
    """The other weights of a delta net: the output's norm and product, and the decay's numbers."""
    vector: Mapping[str, Any] = {"inner": (), "float32": True, "bare": True}
    return (
        Weight("delta_rate", LAYER + "A_log", "column", "gates", **vector),
        Weight("delta_time_bias", LAYER + "dt_bias", "column", "gates", **vector),
        Weight("delta_norm", LAYER + norm, "replicated", "value_dim"),
        Weight("delta_o", LAYER + out, "row", "value_heads"),
    )


def fused_convolution(kernel: int) -> tuple[Weight, ...]:
    """The convolution of queries, keys and values in one tensor."""
    roles = ("conv_q", "conv_k", "conv_v")
    return tuple(convolution(role, "conv1d", kernel, fused=roles) for role in roles)
