"""RMS norms of numbers that shards divide, as operations around a sum; see divided_norm.c."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from skynet.kernels.steps import SQUARES, Float, Number, Places, Pointer, Program


class _DividedNorm(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("weight", "shares", "group_of")),
        *((name, Number) for name in ("segments", "size", "stride", "groups", "x", "sums")),
        ("eps", Float),
    )


class _Gate(ctypes.Structure):
    _fields_ = tuple((name, Number) for name in ("size", "stride", "source", "target"))


@dataclass(frozen=True)
class DividedNorm:
    """Norms over groups of segments, over all shards.

    weight: (segments of this shard, size) float32.
    shares: (groups,) float32: of the sum of squares in the mean square.
    group_of: (segments,) int64.
    """

    weight: torch.Tensor
    shares: torch.Tensor
    group_of: torch.Tensor
    eps: float


def emit_divided_norm(program: Program, norm: DividedNorm, buffer: int, stride: int) -> bool:
    """Norm the first numbers of rows of `buffer`, which are `stride` apart, in place."""
    (segments, size), groups = norm.weight.shape, len(norm.shares)
    arguments = _DividedNorm(
        *(each.data_ptr() for each in (norm.weight, norm.shares, norm.group_of)),
        *(segments, size, stride, groups, buffer, SQUARES, norm.eps),
    )
    return (
        program.append("squares", arguments, SQUARES, groups, norm)
        and program.sum(SQUARES, groups)
        and program.append("divided_norm", arguments, buffer, stride)
    )


def emit_gate(program: Program, size: int, stride: int, places: Places) -> bool:
    """Multiply the target's rows of `size` by the SiLU of the source's rows.

    stride: from a row of the source to the next.
    """
    return program.append("gate", _Gate(size, stride, *places), places[1], size)
