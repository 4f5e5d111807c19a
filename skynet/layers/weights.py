"""Cuts a shard's slice out of the checkpoint's tensors: by unit, fused part and orientation.

Knows which region of a tensor to ask for, not where tensors lie: that is `Fetch`.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Protocol

import torch

from skynet.architecture.architecture import Architecture, Weight
from skynet.errors import CheckpointError
from skynet.layers.heads import GroupedHeads, interleave
from skynet.layers.linear import Linear
from skynet.layers.reuse import Key, LoadedWeights, Made, without
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range

ROTARY_ROLES = ("q", "k", "q_norm", "k_norm")


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
        kept: LoadedWeights | None = None,
    ) -> None:
        """kept: what an earlier slice of the same model had; it is used up."""
        self._arch, self._part, self._fetch = arch, part, fetch
        self._dtype, self._device, self._progress = dtype, device, progress
        self._kept = kept or LoadedWeights()
        self.pieces = LoadedWeights()  # all that was made, for the next slice
        self._grouped = GroupedHeads(arch, part)

    def of(self, arch: Architecture, part: ShardPlan) -> Loader:
        """One for another stack of the same model; what both make is made once."""
        other = copy(self)
        other._arch, other._part, other._grouped = arch, part, GroupedHeads(arch, part)
        return other

    @property
    def fetched_bytes(self) -> int:
        """Of what was made, what was not there before."""
        return self.pieces.fetched_bytes

    def has(self, role: str, layer: int | None = None) -> bool:
        weight = self._arch.weight(role)
        return weight is not None and weight.is_in(layer)

    def has_bias(self, role: str) -> bool:
        weight = self._arch.weight(role)
        return weight is not None and weight.bias

    def linear(
        self,
        *roles: str,
        layer: int | None = None,
        piece: int | None = None,
        bias: bool = True,
    ) -> Linear:
        """The product with the weights of `roles`, one above the other, and their biases."""
        weights = [self._weight(role) for role in roles]
        key, units = self._key("product", weights, layer, piece)
        made = self._found(key, units)
        if not isinstance(made, Linear):
            matrix = self._matrix(key, weights, layer, piece)
            made = Linear(matrix, self._bias(weights, layer) if bias else None)
        self._kept.forget(key)
        self.pieces.add(key, made, units)
        return made

    def matrix(
        self, *roles: str, layer: int | None = None, piece: int | None = None
    ) -> torch.Tensor:
        """The weights of `roles`, one above the other: (out, in) in the plan's dtype."""
        weights = [self._weight(role) for role in roles]
        key, units = self._key("table", weights, layer, piece)
        made = self._found(key, units)
        if not isinstance(made, torch.Tensor):
            made = self._matrix(key, weights, layer, piece)
        self._kept.forget(key)
        self.pieces.add(key, made, units)
        return made

    def float_matrix(self, role: str, layer: int | None = None) -> torch.Tensor:
        """A whole, replicated matrix (out, in) in float32, whatever the plan computes in."""
        weight = self._weight(role)
        return self._float(weight, layer, "weight", self._matrix_shape(weight))

    def vector(self, role: str, kind: str = "weight", layer: int | None = None) -> torch.Tensor:
        """A whole vector in float32: of a norm, or the bias of a row-parallel product."""
        weight = self._weight(role)
        size = self._arch.size(weight.unit) if kind == "weight" else self._arch.bias_size(weight)
        return self._float(weight, layer, kind, (size,))

    def vocab_vector(self, role: str) -> torch.Tensor:
        """(vocabulary of this shard,) float32."""
        weight = self._weight(role)
        units = self._units(weight)
        return self._float(weight, None, "bias", (units.size,), units)

    def head_vectors(self, role: str, kind: str, layer: int) -> torch.Tensor:
        """(heads of this shard, head_dim) float32: the norm of each of its query or KV heads."""
        weight, head_dim = self._weight(role), self._arch.head_dim
        heads = self._part.heads if role == "q_norm" else self._part.kv_heads
        if weight.unit == "head_dim":  # one for all heads
            return self.vector(role, kind, layer).expand(heads.size, -1)
        region, pieces = self._units(weight), None
        if weight.in_pieces:
            pieces, region = heads, Range(0, head_dim)
        elif weight.by_head:
            region = heads
        made = self._float(weight, layer, kind, (heads.size * head_dim,), region, pieces)
        return made.view(-1, head_dim)

    def row_bias(self, *roles: str, layer: int) -> torch.Tensor | None:
        """What is added once, after the sum of row-parallel products; None if nothing is."""
        biased = [role for role in roles if self.has_bias(role)]
        if not biased:
            return None
        if len(biased) == 1:
            return self.vector(biased[0], "bias", layer)
        names = [self._weight(role).tensor(layer, "bias") for role in biased]
        key = ("sum", *names, self._number(layer))
        total = self._kept.same(key, ())
        if not isinstance(total, torch.Tensor):
            total = torch.zeros(self._arch.hidden_size, dtype=torch.float32, device=self._device)
            for name in names:
                total += self._fetch(name, Range(0, total.numel())).to(total)
            self._count(total)
        self.pieces.add(key, total, ())
        return total

    def _matrix(
        self, key: Key, weights: list[Weight], layer: int | None, piece: int | None = None
    ) -> torch.Tensor:
        shapes = [self._matrix_shape(weight) for weight in weights]
        out = torch.empty(
            (sum(shape[0] for shape in shapes), shapes[0][1]),
            dtype=self._dtype,
            device=self._device,
        )
        parts = out.split([shape[0] for shape in shapes])
        for at, (weight, part) in enumerate(zip(weights, parts, strict=True)):
            if part.numel():
                self._fill(key, at, weight, layer, weight.tensor(layer, piece=piece), part)
        self._grouped.forget()
        return out

    def _fill(
        self, key: Key, at: int, weight: Weight, layer: int | None, name: str, out: torch.Tensor
    ) -> None:
        """One weight's part of a matrix: from what is here as far as it goes, else fetched."""
        axis, units = (1 if weight.cut == "row" else 0), self._units(weight)
        found = self._kept.overlap(key, at, units, axis)
        if found is not None:
            have, values = found
            out.narrow(axis, have.start - units.start, have.size).copy_(values)
        for part in without(units, found[0] if found else None):
            raw = self._rows(weight, name, part)
            target = out.narrow(axis, part.start - units.start, part.size)
            self._copy(weight, raw.t() if weight.transposed else raw, target, layer)

    def _bias(self, weights: list[Weight], layer: int | None) -> torch.Tensor | None:
        """The biases of column-parallel weights, end to end, in the plan's dtype; None if none."""
        if not weights[0].bias:
            return None
        ranges = [self._units(weight) for weight in weights]
        sizes = [units.size for units in ranges]
        out = torch.empty(sum(sizes), dtype=self._dtype, device=self._device)
        for weight, units, part in zip(weights, ranges, out.split(sizes), strict=True):
            if part.numel():
                raw = self._rows(weight, weight.tensor(layer, "bias"), units)
                self._copy(weight, raw, part, layer)
        self._grouped.forget()
        return out

    def _float(
        self,
        weight: Weight,
        layer: int | None,
        kind: str,
        shape: tuple[int, ...],
        region: Range | None = None,
        pieces: Range | None = None,
    ) -> torch.Tensor:
        """A small tensor that is kept in float32.

        region: what is fetched of the checkpoint's, all of it by default.
        pieces: numbers of several, which are put end to end.
        """
        numbers = [None] if pieces is None else range(pieces.start, pieces.stop)
        names = [weight.tensor(layer, kind, piece) for piece in numbers]
        key = ("float", weight.name, kind, self._number(layer))
        units = tuple(each for each in (region, pieces) if each is not None)
        made = self._found(key, units)
        if not isinstance(made, torch.Tensor):
            made = torch.empty(shape, dtype=torch.float32, device=self._device)
            raw = [self._fetch(name, region or Range(0, shape[0])) for name in names]
            whole = raw[0] if len(raw) == 1 else torch.cat(raw)
            self._copy(weight, whole.reshape(shape), made, layer)
        self.pieces.add(key, made, units)
        return made

    def _key(
        self, kind: str, weights: list[Weight], layer: int | None, piece: int | None = None
    ) -> tuple[Key, tuple[Range, ...]]:
        """What a thing is known by, and which units of each weight it has."""
        names = [weight.tensor(layer, piece=piece) for weight in weights]
        roles = [weight.role for weight in weights]  # fused ones share a name
        units = tuple(self._units(weight) for weight in weights)
        return (kind, *names, *roles, self._number(layer)), units

    def _number(self, layer: int | None) -> int | None:
        """The layer's number among those of all stacks."""
        return None if layer is None else self._arch.encoder_layers + layer

    def _found(self, key: Key, units: tuple[Range, ...]) -> Made | None:
        """The thing itself, if this slice has made it, or the one before had it."""
        made = self.pieces.same(key, units)
        return self._kept.same(key, units) if made is None else made

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

    def _rows(self, weight: Weight, name: str, units: Range) -> torch.Tensor:
        """The region of a tensor that has these units, as the tensor is stored."""
        if weight.by_group:
            fetch = partial(self._fetch, name)
            if units == self._units(weight):
                return self._grouped.all_of(weight, name, fetch)
            return self._grouped.some_of(weight, units, fetch)
        offset = self._arch.offset(weight)
        return self._fetch(name, Range(units.start + offset, units.stop + offset))

    def _copy(
        self, weight: Weight, raw: torch.Tensor, out: torch.Tensor, layer: int | None
    ) -> None:
        if raw.shape != out.shape:
            raise CheckpointError(
                f"{weight.name} ({weight.role}): fetched {tuple(raw.shape)}, expected "
                f"{tuple(out.shape)}"
            )
        rope = None if layer is None else self._arch.ropes[layer]
        if rope is not None and not rope.adjacent and weight.role in ROTARY_ROLES:
            interleave(raw, out, self._arch.head_dim, rope.dims)
        else:
            out.copy_(raw)
        self._count(out)

    def _count(self, made: torch.Tensor) -> None:
        self.pieces.fetched_bytes += made.nbytes
        if self._progress is not None:
            self._progress(made.nbytes)
