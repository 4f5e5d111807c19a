"""Norms: the float32 hidden states in, the dtype of the products out."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F


class Norm(Protocol):
    """A norm over the last dimension."""

    nbytes: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class RMSNorm:
    """Zhang and Sennrich, 2019, arXiv:1910.07467: x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> None:
        self.nbytes = weight.nbytes
        self._weight = weight
        self._scale = weight.shape[-1] ** -0.5
        # sqrt(mean + eps) is hypot(|x| / sqrt(n), sqrt(eps)): fewer, cheaper kernels than the
        # textbook order, and half the time of F.rms_norm for the few rows of a decoding step.
        self._root_eps = torch.tensor(math.sqrt(eps), device=weight.device)
        self._dtype = dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (..., size) float32."""
        root = torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(self._scale)
        return (x / root.hypot_(self._root_eps)).mul_(self._weight).to(self._dtype)


class LayerNorm:
    """Ba et al., 2016, arXiv:1607.06450."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, eps: float, dtype: torch.dtype
    ) -> None:
        self.nbytes = weight.nbytes + bias.nbytes
        self._weight, self._bias, self._eps, self._dtype = weight, bias, eps, dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (..., size) float32."""
        shape = self._weight.shape
        return F.layer_norm(x, shape, self._weight, self._bias, self._eps).to(self._dtype)
