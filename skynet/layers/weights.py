"""Cuts a shard's slice out of the checkpoint's tensors: by unit, fused part and orientation.

Knows which region of a tensor to ask for, not where tensors lie: that is `Fetch`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from skynet.errors import CheckpointError
from skynet.layers.kept import Key, Pieces, without
from skynet.layers.linear import Linear
from skynet.models.architecture import Architecture, Weight
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range


class Fetch(Protocol):
    """Gives a region of a staged tensor along the axis it is cut in, whole in the other one."""

    def __call__(self, name: str, region: Range) -> torch.Tensor: ...


Progress = Callable[[int], None]


class Loader:
    """Makes the weights of one shard, each converted as it comes and then let go."""

    def __init__(
        self,
        arch: Architecture,
        part: ShardPlan,
        fetch: Fetch,
        dtype: torch.dtype,
        device: torch.device,
        progress: Progress | None = None,
        kept: Pieces | None = None,
    ) -> None:
        """kept: what an earlier slice of the same model had; it is used up."""
        self._arch, self._part, self._fetch = arch, part, fetch
        self._dtype, self._device, self._progress = dtype, device, progress
        self._kept = kept or Pieces()
        self.pieces = Pieces()  # all that was made, for the next slice
        self.fetched_bytes = 0  # of what was made

    def has(self, role: str) -> bool:
        return self._arch.weight(role) is not None

    def linear(self, *roles: str, layer: int | None = None, bias: bool = True) -> Linear:
        """The product with the weights of `roles`, one above the other, and their biases."""
        weights = [self._weight(role) for role in roles]
        key, units = (roles, layer), tuple(self._units(weight) for weight in weights)
        made = self._kept.same(key, units)
        if not isinstance(made, Linear):
            matrix = self._matrix(key, weights, layer)
            made = Linear(matrix, self.bias(*roles, layer=layer) if bias else None)
        self._kept.forget(key)
        self.pieces.add(key, made, units)
        return made

    def matrix(self, *roles: str, layer: int | None = None) -> torch.Tensor:
        """The weights of `roles`, one above the other: (out, in) in the plan's dtype."""
        weights = [self._weight(role) for role in roles]
        key, units = ("table", roles, layer), tuple(self._units(weight) for weight in weights)
        made = self._kept.same(key, units)
        if not isinstance(made, torch.Tensor):
            made = self._matrix(key, weights, layer)
        self._kept.forget(key)
        self.pieces.add(key, made, units)
        return made

    def _matrix(self, key: Key, weights: list[Weight], layer: int | None) -> torch.Tensor:
        shapes = [self._matrix_shape(weight) for weight in weights]
        out = torch.empty(
            (sum(shape[0] for shape in shapes), shapes[0][1]),
            dtype=self._dtype,
            device=self._device,
        )
        pieces = out.split([shape[0] for shape in shapes])
        for at, (weight, piece) in enumerate(zip(weights, pieces, strict=True)):
            if piece.numel():
                self._fill(key, at, weight, layer, piece)
        return out

    def _fill(
        self,
        key: Key,
        at: int,
        weight: Weight,
        layer: int | None,
        out: torch.Tensor,
    ) -> None:
        """One weight's part of a matrix: from what is here as far as it goes, else fetched."""
        axis, units = (1 if weight.cut == "row" else 0), self._units(weight)
        found = self._kept.overlap(key, at, units, axis)
        if found is not None:
            have, values = found
            out.narrow(axis, have.start - units.start, have.size).copy_(values)
        offset = self._arch.fused_offset(weight)
        for part in without(units, found[0] if found else None):
            region = Range(part.start + offset, part.stop + offset)
            raw = self._fetch(weight.tensor(layer), region)
            target = out.narrow(axis, part.start - units.start, part.size)
            self._copy(weight, raw.t() if weight.transposed else raw, target)

    def bias(self, *roles: str, layer: int | None = None) -> torch.Tensor | None:
        """The biases of column-parallel `roles`, end to end, in the plan's dtype; None if none."""
        weights = [self._weight(role) for role in roles]
        if not weights[0].bias:
            return None
        sizes = [self._units(weight).size for weight in weights]
        out = torch.empty(sum(sizes), dtype=self._dtype, device=self._device)
        for weight, piece in zip(weights, out.split(sizes), strict=True):
            if piece.numel():
                raw = self._fetch(weight.tensor(layer, "bias"), self._region(weight))
                self._copy(weight, raw, piece)
        return out

    def vector(self, role: str, kind: str = "weight", layer: int | None = None) -> torch.Tensor:
        """A whole vector in float32: of a norm, or the bias of a row-parallel product."""
        weight, key = self._weight(role), (role, kind, layer)
        made = self._kept.same(key, ())
        if not isinstance(made, torch.Tensor):
            is_weight = kind == "weight"
            size = self._arch.size(weight.unit) if is_weight else self._arch.bias_size(weight)
            made = torch.empty(size, dtype=torch.float32, device=self._device)
            self._copy(weight, self._fetch(weight.tensor(layer, kind), Range(0, size)), made)
        self.pieces.add(key, made, ())
        return made

    def row_bias(self, role: str, layer: int) -> torch.Tensor | None:
        """What is added once, after the sum of a row-parallel product; None if nothing is."""
        return self.vector(role, "bias", layer) if self._weight(role).bias else None

    def _weight(self, role: str) -> Weight:
        weight = self._arch.weight(role)
        if weight is None:
            raise CheckpointError(f"{self._arch.model_type} has no weight {role!r}")
        return weight

    def _units(self, weight: Weight) -> Range:
        """The shard's part of the dimension the weight is cut in, before fusing."""
        part, head_dim = self._part, self._arch.head_dim
        if weight.unit in ("heads", "kv_heads"):
            heads = part.heads if weight.unit == "heads" else part.kv_heads
            return Range(heads.start * head_dim, heads.stop * head_dim)
        if weight.unit == "columns":
            return part.columns
        if weight.unit == "vocab":
            return part.vocab
        return Range(0, self._arch.size(weight.unit))

    def _region(self, weight: Weight) -> Range:
        units, offset = self._units(weight), self._arch.fused_offset(weight)
        return Range(units.start + offset, units.stop + offset)

    def _matrix_shape(self, weight: Weight) -> tuple[int, int]:
        size, hidden = self._units(weight).size, self._arch.hidden_size
        return (hidden, size) if weight.cut == "row" else (size, hidden)

    def _copy(self, weight: Weight, raw: torch.Tensor, out: torch.Tensor) -> None:
        if raw.shape != out.shape:
            raise CheckpointError(
                f"{weight.name} ({weight.role}): fetched {tuple(raw.shape)}, expected "
                f"{tuple(out.shape)}"
            )
        if self._arch.rope is not None and weight.role in ("q", "k", "q_norm", "k_norm"):
            interleave(raw, out, self._arch.head_dim)
        else:
            out.copy_(raw)
        self.fetched_bytes += out.nbytes
        if self._progress is not None:
            self._progress(out.nbytes)


def interleave(raw: torch.Tensor, out: torch.Tensor, head_dim: int) -> None:
    """Copy rows (heads x head_dim, ...) so that those rope turns together are neighbours.

    Checkpoints have the first halves of all pairs of a head, then the second halves.
    """
    half = head_dim // 2
    pairs = raw.unflatten(0, (-1, 2, half)).transpose(1, 2)  # (heads, half, 2, ...)
    out.unflatten(0, (-1, half, 2)).copy_(pairs)
