"""Cuts a shard's slice out of the checkpoint's tensors: by unit, fused part and orientation.

Knows which region of a tensor to ask for, not where tensors lie: that is `Fetch`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch

from skynet.errors import CheckpointError
from skynet.models.architecture import Architecture, Weight
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range

TURNED_ROLES = ("q", "k", "q_norm", "k_norm")


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
    ) -> None:
        self._arch, self._part, self._fetch = arch, part, fetch
        self._dtype, self._device, self._progress = dtype, device, progress
        self._groups: tuple[str, torch.Tensor] | None = None  # the last tensor fused by group

    def has(self, role: str) -> bool:
        return self._arch.weight(role) is not None

    def has_bias(self, role: str) -> bool:
        weight = self._arch.weight(role)
        return weight is not None and weight.bias

    def matrix(
        self, *roles: str, layer: int | None = None, piece: int | None = None
    ) -> torch.Tensor:
        """The weights of `roles`, one above the other: (out, in) in the plan's dtype."""
        weights = [self._weight(role) for role in roles]
        shapes = [self._matrix_shape(weight) for weight in weights]
        out = torch.empty(
            (sum(shape[0] for shape in shapes), shapes[0][1]),
            dtype=self._dtype,
            device=self._device,
        )
        pieces = out.split([shape[0] for shape in shapes])
        for weight, part in zip(weights, pieces, strict=True):
            if part.numel():
                raw = self._rows(weight, weight.tensor(layer, piece=piece))
                self._copy(weight, raw.t() if weight.transposed else raw, part, layer)
        self._groups = None
        return out

    def bias(self, *roles: str, layer: int | None = None) -> torch.Tensor | None:
        """The biases of column-parallel `roles`, end to end, in the plan's dtype; None if none."""
        weights = [self._weight(role) for role in roles]
        if not weights[0].bias:
            return None
        sizes = [self._units(weight).size for weight in weights]
        out = torch.empty(sum(sizes), dtype=self._dtype, device=self._device)
        for weight, part in zip(weights, out.split(sizes), strict=True):
            if part.numel():
                self._copy(weight, self._rows(weight, weight.tensor(layer, "bias")), part, layer)
        self._groups = None
        return out

    def float_matrix(self, role: str, layer: int) -> torch.Tensor:
        """A whole, replicated matrix (out, in) in float32, whatever the plan computes in."""
        weight = self._weight(role)
        out = torch.empty(self._matrix_shape(weight), dtype=torch.float32, device=self._device)
        self._copy(weight, self._rows(weight, weight.tensor(layer)), out, layer)
        return out

    def vector(self, role: str, kind: str = "weight", layer: int | None = None) -> torch.Tensor:
        """A whole vector in float32: of a norm, or the bias of a row-parallel product."""
        weight = self._weight(role)
        size = self._arch.size(weight.unit) if kind == "weight" else self._arch.bias_size(weight)
        out = torch.empty(size, dtype=torch.float32, device=self._device)
        raw = self._fetch(weight.tensor(layer, kind), Range(0, size))
        self._copy(weight, raw, out, layer)
        return out

    def head_vectors(self, role: str, kind: str, layer: int) -> torch.Tensor:
        """(heads of this shard, head_dim) float32: the norm of each of its query or KV heads."""
        weight, head_dim = self._weight(role), self._arch.head_dim
        heads = self._part.heads if role == "q_norm" else self._part.kv_heads
        if weight.unit == "head_dim":  # one for all heads
            return self.vector(role, kind, layer).expand(heads.size, -1)
        if weight.in_pieces:
            names = [
                weight.tensor(layer, kind, piece=head) for head in range(heads.start, heads.stop)
            ]
            raw = torch.cat([self._fetch(name, Range(0, head_dim)) for name in names])
        elif weight.by_head:
            raw = self._fetch(weight.tensor(layer, kind), heads).flatten()
        else:
            raw = self._fetch(weight.tensor(layer, kind), self._units(weight))
        out = torch.empty(heads.size * head_dim, dtype=torch.float32, device=self._device)
        self._copy(weight, raw, out, layer)
        return out.view(-1, head_dim)

    def row_bias(self, *roles: str, layer: int) -> torch.Tensor | None:
        """What is added once, after the sum of row-parallel products; None if nothing is."""
        biased = [role for role in roles if self.has_bias(role)]
        if not biased:
            return None
        total = self.vector(biased[0], "bias", layer)
        for role in biased[1:]:
            name = self._weight(role).tensor(layer, "bias")
            total += self._fetch(name, Range(0, total.numel())).to(total)
        return total

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
        return Range(0, self._arch.outputs(weight))

    def _matrix_shape(self, weight: Weight) -> tuple[int, int]:
        size, inputs = self._units(weight).size, self._arch.inputs(weight)
        if weight.cut == "row":
            return (self._arch.hidden_size, size)
        return (size, inputs or 1)

    def _rows(self, weight: Weight, name: str) -> torch.Tensor:
        """The shard's region of a tensor, as the tensor is stored."""
        if weight.by_group:
            return self._heads_of_groups(weight, name)
        units, offset = self._units(weight), self._arch.offset(weight)
        return self._fetch(name, Range(units.start + offset, units.stop + offset))

    def _heads_of_groups(self, weight: Weight, name: str) -> torch.Tensor:
        """The heads of one role out of a tensor that has all roles of a KV head together.

        The parts of all roles are fetched at once, in as few runs as they lie in.
        """
        heads = sorted(place for role in weight.fused for place in self._places(role))
        head_dim = self._arch.head_dim
        if self._groups is None or self._groups[0] != name:
            raw = [
                self._fetch(name, Range(run.start * head_dim, run.stop * head_dim))
                for run in _runs(heads)
            ]
            self._groups = name, torch.cat(raw)
        wanted = [heads.index(place) for place in self._places(weight.role)]
        return self._groups[1].unflatten(0, (-1, head_dim))[wanted].flatten(0, 1)

    def _places(self, role: str) -> list[int]:
        """Where the shard's heads of a role stand among all heads of a tensor fused by group."""
        part, group = self._part, self._arch.group
        if role == "q":
            heads = range(part.heads.start, part.heads.stop)
            return [head // group * (group + 2) + head % group for head in heads]
        after = group if role == "k" else group + 1
        return [kv * (group + 2) + after for kv in range(part.kv_heads.start, part.kv_heads.stop)]

    def _copy(
        self, weight: Weight, raw: torch.Tensor, out: torch.Tensor, layer: int | None
    ) -> None:
        if raw.shape != out.shape:
            raise CheckpointError(
                f"{weight.name} ({weight.role}): fetched {tuple(raw.shape)}, expected "
                f"{tuple(out.shape)}"
            )
        rope = None if layer is None else self._arch.ropes[layer]
        if rope is not None and not rope.adjacent and weight.role in TURNED_ROLES:
            interleave(raw, out, self._arch.head_dim, rope.dims)
        else:
            out.copy_(raw)
        if self._progress is not None:
            self._progress(out.nbytes)


def _runs(places: list[int]) -> list[Range]:
    """Runs of neighbours in a sorted list."""
    starts = [0] + [at for at, (a, b) in enumerate(pairwise(places), 1) if b != a + 1]
    stops = [*starts[1:], len(places)]
    return [Range(places[a], places[b - 1] + 1) for a, b in zip(starts, stops, strict=True)]


def interleave(raw: torch.Tensor, out: torch.Tensor, head_dim: int, dims: int) -> None:
    """Copy rows (heads x head_dim, ...) so that those rope turns together are neighbours.

    Checkpoints have the first halves of all pairs of a head, then the second halves, both within
    the `dims` rows that are turned at all.
    """
    half = dims // 2
    given, made = raw.unflatten(0, (-1, head_dim)), out.unflatten(0, (-1, head_dim))
    pairs = given[:, :dims].unflatten(1, (2, half)).transpose(1, 2)  # (heads, half, 2, ...)
    made[:, :dims].unflatten(1, (half, 2)).copy_(pairs)
    made[:, dims:].copy_(given[:, dims:])
