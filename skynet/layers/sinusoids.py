"""Positions as sines and cosines (Vaswani et al., 2017, arXiv:1706.03762, section 3.5)."""

from __future__ import annotations

import math

import torch

from skynet.architecture.positions import Sinusoids

BASE = 10_000


def sinusoid_table(sinusoids: Sinusoids, first: int, count: int, width: int) -> torch.Tensor:
    """(count, width) float32 for positions from `first` on: sines, then cosines."""
    half = torch.arange(width // 2)
    positions = torch.arange(first, first + count)[:, None]
    if sinusoids.single:
        frequencies = torch.exp(half.float() * -(math.log(BASE) / sinusoids.divisor))
        angles = positions.float() * frequencies
    else:
        angles = positions.double() / BASE ** (half.double() / sinusoids.divisor)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
