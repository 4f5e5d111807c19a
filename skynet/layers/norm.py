"""Norms: they take float32 hidden states and return the dtype of the products."""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F

from skynet.architecture.architecture import Architecture
from skynet.kernels.divided_norm import DividedNorm
from skynet.kernels.row_operations import rms_norm
from skynet.kernels.steps import NormWeights
from skynet.layers.weights import Loader


class AllReduce(Protocol):
    """The sum of all shards' partials, in shard order, in float32 and of the same shape.

    A partial is (tokens, hidden), contiguous, float32 or bfloat16 as it was computed.
    """

    def __call__(self, partial: torch.Tensor) -> torch.Tensor: ...


class Norm(Protocol):
    """A norm over the last dimension.

    weights: for the kernels; None: they do not support it.
    """

    nbytes: int
    weights: NormWeights | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class NoNorm:
    """Stands where a family has no norm: converts to the dtype of the products."""

    nbytes = 0
    weights: NormWeights | None = None

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self._dtype)


class RMSNorm:
    """Zhang and Sennrich, 2019, arXiv:1910.07467: x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> None:
        self.nbytes = weight.nbytes
        self.weights: NormWeights | None = NormWeights("rms", weight, None, eps)
        self._weight, self._eps = weight, eps
        self._scale = weight.shape[-1] ** -0.5
        # sqrt(mean + eps) is hypot(|x| / sqrt(n), sqrt(eps)): fewer, cheaper kernels than the
        # textbook order, and half the time of F.rms_norm for the few rows of a decoding step.
        self._root_eps = torch.tensor(math.sqrt(eps), device=weight.device)
        self._dtype = dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (..., size) float32."""
        y = rms_norm(x, self._weight, self._eps)
        if y is not None:
            return y.to(self._dtype)
        root = torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(self._scale)
        return (x / root.hypot_(self._root_eps)).mul_(self._weight).to(self._dtype)


class LayerNorm:
    """Ba et al., 2016, arXiv:1607.06450. Its weight may have a row for each head."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, dtype: torch.dtype
    ) -> None:
        self.nbytes = weight.nbytes + (0 if bias is None else bias.nbytes)
        self.weights: NormWeights | None = NormWeights("layer", weight, bias, eps)
        self._weight, self._bias, self._eps, self._dtype = weight, bias, eps, dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (..., size) float32."""
        size = self._weight.shape[-1:]
        if self._weight.ndim == 1:
            return F.layer_norm(x, size, self._weight, self._bias, self._eps).to(self._dtype)
        x = F.layer_norm(x, size, None, None, self._eps).mul_(self._weight)
        return (x if self._bias is None else x.add_(self._bias)).to(self._dtype)


def load_norm(
    load: Loader, role: str, layer: int | None = None, dtype: torch.dtype | None = None
) -> Norm:
    """The replicated norm of this role; `NoNorm` where the model has none.

    dtype: of the result; that of the products by default.
    """
    dtype = load.dtype if dtype is None else dtype
    if not load.has(role, layer):
        return NoNorm(dtype)
    bias = load.float32.vector(role, "bias", layer) if load.has_bias(role) else None
    return _make(load.arch, load.float32.vector(role, layer=layer), bias, dtype)


def unweighted_norm(load: Loader, heads: int) -> Norm:
    """An RMS norm of each of so many heads, float32, without weights."""
    ones = torch.ones(heads, load.arch.head_dim, device=load.device)
    norm = RMSNorm(ones, load.arch.norm_eps, torch.float32)
    norm.nbytes = 0  # nothing that a file has
    return norm


def load_head_norm(load: Loader, layer: int, roles: tuple[str, ...] = ("q_norm", "k_norm")) -> Norm:
    """The norm of a shard's query and key heads in one call, float32: a row of weights per head."""
    if not load.has(roles[0]):
        return unweighted_norm(load, load.part.heads.size + load.part.kv_heads.size)
    weight = torch.cat([load.float32.head_vectors(role, "weight", layer) for role in roles])
    bias = None
    if load.has_bias("q_norm"):
        bias = torch.cat([load.float32.head_vectors(role, "bias", layer) for role in roles])
    return _make(load.arch, weight, bias, torch.float32)


def _make(
    arch: Architecture, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> Norm:
    if arch.norm == "layer":
        return LayerNorm(weight, bias, arch.norm_eps, dtype)
    weight = weight + arch.norm_offset if arch.norm_offset else weight
    return RMSNorm(weight, arch.norm_eps, dtype)


class AllHeadsNorm:
    """RMS norms of all query heads together, and of all key heads, over all shards.

    The mean squares take one more all-reduce in each layer, of two numbers per token.
    """

    def __init__(self, load: Loader, layer: int) -> None:
        arch, part = load.arch, load.part
        weights = [
            load.float32.head_vectors(role, "weight", layer) for role in ("q_norm", "k_norm")
        ]
        self._weight = torch.cat(weights) + arch.norm_offset
        self.nbytes = self._weight.nbytes
        self._eps, self._heads, self._kv_heads = arch.norm_eps, part.heads.size, part.kv_heads.size
        sizes = [arch.size("heads"), arch.size("kv_heads")]
        # A KV head that several shards share is counted by the shard with its first query head.
        counts = [1.0, float(part.heads.start == part.kv_heads.start * arch.group)]
        shares = [count / size for count, size in zip(counts, sizes, strict=True)]
        self._shares = torch.tensor(shares, device=self._weight.device)

    def __call__(self, x: torch.Tensor, all_reduce: AllReduce) -> torch.Tensor:
        """`x` (tokens, query and KV heads, head_dim) float32."""
        squares = x.square().sum(-1)
        queries, keys = squares[:, : self._heads].sum(1), squares[:, self._heads :].sum(1)
        means = all_reduce(torch.stack([queries, keys], dim=1).mul_(self._shares))
        inverse = means.add_(self._eps).rsqrt_()  # (tokens, 2)
        query_scale = inverse[:, :1].expand(-1, self._heads)
        key_scale = inverse[:, 1:].expand(-1, x.shape[1] - self._heads)
        return x * torch.cat([query_scale, key_scale], dim=1)[:, :, None] * self._weight

    def for_kernels(self) -> DividedNorm:
        """The same for a program: groups are queries and keys, segments are heads."""
        groups = [0] * self._heads + [1] * self._kv_heads
        group_of = torch.tensor(groups, dtype=torch.int64)
        return DividedNorm(self._weight, self._shares, group_of, self._eps)
