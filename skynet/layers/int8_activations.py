"""Activations rounded to int8, as the numbers that the codes mean: the twin of integers.c."""

from __future__ import annotations

import torch

MAX_CODE = 127
LEAST = 2.0**-120  # groups of smaller numbers count as zeros


def rounded(x: torch.Tensor, group: int) -> torch.Tensor:
    """`x` (rows, in) float32, each group of inputs of a row rounded to codes with a scale.

    A group with a NaN or an infinity becomes NaN.
    """
    grouped = x.unflatten(-1, (-1, group))
    largest = grouped.abs().amax(-1, keepdim=True)
    counts = largest >= LEAST
    inverses = torch.full_like(largest, MAX_CODE) / largest  # a number / a tensor is rounded twice
    codes = (grouped * inverses).round_().masked_fill_(~counts, 0)
    scales = (largest / MAX_CODE).masked_fill_(largest < LEAST, 0)
    return (codes * scales.masked_fill_(~largest.isfinite(), torch.nan)).flatten(-2)
