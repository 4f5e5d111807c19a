"""Loads the weights of one shard: each is converted as it is fetched, and the original freed."""

from __future__ import annotations

from copy import copy
from itertools import groupby
from typing import ClassVar

import torch

from skynet.architecture.architecture import Architecture
from skynet.architecture.weight import Weight
from skynet.layers.dtypes import Dtypes
from skynet.layers.float_weights import FloatLoader
from skynet.layers.linear import (
    JoinedLinear,
    Linear,
    ScaledLinear,
    make_linear,
    make_quantised_linear,
)
from skynet.layers.regions import Fetch, ShardRegions, groups_of
from skynet.layers.reuse import Key, SliceWeights, without
from skynet.layers.rows import BlockRows, NumberRows, Rows
from skynet.planning.plan import ShardPlan
from skynet.planning.ranges import Range
from skynet.planning.units import items_of, part_of_kind
from skynet.wire.blocks import BlockFormat


class Loader:
    """Makes the products and tables of one shard of a stack; `float32` makes the small weights."""

    regions_class: ClassVar[type[ShardRegions]] = ShardRegions

    def __init__(
        self,
        arch: Architecture,
        part: ShardPlan,
        fetch: Fetch,
        dtypes: Dtypes,
        device: torch.device,
        weights: SliceWeights | None = None,
    ) -> None:
        """weights: where they are collected, and reused from."""
        self.arch, self.part, self.dtypes, self.device = arch, part, dtypes, device
        self.regions = self.regions_class(arch, part, fetch)
        self.weights = SliceWeights() if weights is None else weights
        self.float32 = FloatLoader(self.regions, self.weights, device)

    def for_encoder(self) -> Loader | None:
        """A loader of the encoder's weights, if there is one; shared tensors are loaded once."""
        arch, part = self.arch.encoder, self.part.encoder
        if arch is None or part is None:
            return None
        return Loader(arch, part, self.regions.fetch, self.dtypes, self.device, self.weights)

    def at(self, layer: int) -> Loader:
        """A loader of the shard's weights of a layer, which may be of another kind than others."""
        arch = self.arch.at(layer)
        if arch is self.arch:
            return self
        other = copy(self)
        other.arch, other.part = arch, part_of_kind(self.arch, arch, self.part)
        other.regions = self.regions_class(arch, other.part, self.regions.fetch)
        other.float32 = FloatLoader(other.regions, self.weights, self.device)
        return other

    def computing_in(self, dtype: torch.dtype) -> Loader:
        """A loader of the same shard whose products are of activations of `dtype`."""
        other = copy(self)
        other.dtypes = self.dtypes._replace(compute=dtype)
        return other

    @property
    def table_dtype(self) -> torch.dtype:
        """Of tables whose rows are looked up."""
        return self.dtypes.weights

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: of activations, biases, keys and values."""
        return self.dtypes.compute

    def count(self, unit: str) -> int:
        """How many items of a unit the shard has."""
        return items_of(self.arch, self.part, unit).size

    def has(self, role: str, layer: int | None = None) -> bool:
        weight = self.arch.weight(role)
        return weight is not None and weight.is_in(layer)

    def has_bias(self, role: str) -> bool:
        weight = self.arch.weight(role)
        return weight is not None and weight.bias

    def linear(
        self,
        *roles: str,
        layer: int | None = None,
        piece: int | None = None,
        bias: bool = True,
    ) -> Linear:
        """The product with the weights of `roles`, one above the other, and their biases.

        Scaled, where the weights have scales.
        """
        weights = [self.regions.weight(role) for role in roles]
        products, sizes = [], []
        for form, run in groupby(weights, lambda each: self._form(each, layer, piece)):
            alike = list(run)
            products.append(self._product(alike, form, layer, piece, bias))
            sizes.append(sum(self.regions.matrix_shape(weight)[0] for weight in alike))
        product = products[0] if len(products) == 1 else JoinedLinear(products, sizes)
        scales = [weight.scale for weight in weights]
        if all(scale == 1 for scale in scales):
            return product
        outputs = [self.regions.matrix_shape(weight)[0] for weight in weights]
        return ScaledLinear(product, outputs, scales)

    def _product(
        self,
        weights: list[Weight],
        form: BlockFormat | None,
        layer: int | None,
        piece: int | None,
        bias: bool,
    ) -> Linear:
        """The product with weights of one form."""
        key, units = self._key("product", weights, layer, piece)
        product = self.weights.get(key, units)
        if not isinstance(product, Linear):
            matrix = self._loaded_table(key, units)
            if matrix is None:
                matrix = self._matrix(key, weights, layer, piece, self.dtypes.weights)
            vector = self._bias(weights, layer, piece) if bias else None
            if form is None:
                product = make_linear(matrix, vector, self.dtype)
            else:
                int8 = self.dtypes.int8
                product = make_quantised_linear(matrix, form, vector, self.dtype, int8)
        self.weights.add(key, product, units)
        return product

    def _loaded_table(self, key: Key, units: tuple[Range, ...]) -> torch.Tensor | None:
        """The weights of a product if this slice has them as a table: of a tied embedding."""
        key = ("table", *key[1:])
        table = self.weights.loaded.get(key, units)
        if not isinstance(table, torch.Tensor) or self.table_dtype != self.dtypes.weights:
            return None
        self.weights.fetched_bytes += self.weights.fetched_of[key]
        return table

    def rows(self, role: str, layer: int | None = None) -> Rows:
        """The table `role`, whose rows are looked up."""
        form, table = self._form(self.regions.weight(role), layer), self.matrix(role, layer=layer)
        return NumberRows(table) if form is None else BlockRows(table, form, self.dtype)

    def matrix(
        self, *roles: str, layer: int | None = None, piece: int | None = None
    ) -> torch.Tensor:
        """The weights of `roles`, one above the other: (out, in) in the dtype of weights.

        Of quantised ones the blocks, (out, groups, block).
        """
        weights = [self.regions.weight(role) for role in roles]
        key, units = self._key("table", weights, layer, piece)
        table = self.weights.get(key, units)
        if not isinstance(table, torch.Tensor):
            before = self.weights.fetched_bytes
            table = self._matrix(key, weights, layer, piece, self.table_dtype)
            self.weights.fetched_of[key] = self.weights.fetched_bytes - before
        self.weights.add(key, table, units)
        return table

    def _form(
        self, weight: Weight, layer: int | None, piece: int | None = None
    ) -> BlockFormat | None:
        """The format of a quantised weight."""
        return self.arch.block_format(weight, layer, piece)

    def _units(self, weight: Weight, form: BlockFormat | None) -> Range:
        """The shard's part of the axis that the weight is cut along; of blocks these are groups."""
        units = self.regions.units(weight)
        return units if form is None or weight.cut != "row" else groups_of(units, form, weight)

    def _key(
        self, kind: str, weights: list[Weight], layer: int | None, piece: int | None = None
    ) -> tuple[Key, tuple[Range, ...]]:
        """The key of a product or table, and its units of each weight."""
        names = [weight.tensor(layer, piece=piece) for weight in weights]
        roles = [weight.role for weight in weights]  # fused ones share a name
        units = tuple(self._units(w, self._form(w, layer, piece)) for w in weights)
        return (kind, *names, *roles, self.regions.layer_number(layer)), units

    def _matrix(
        self,
        key: Key,
        weights: list[Weight],
        layer: int | None,
        piece: int | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        shapes = [self.regions.matrix_shape(weight) for weight in weights]
        outputs, inputs = sum(shape[0] for shape in shapes), shapes[0][1]
        form = self._form(weights[0], layer, piece)
        if form is None:
            out = self._empty(dtype, outputs, inputs)
        else:
            out = self._empty(torch.uint8, *form.shape(outputs, inputs))
        parts = out.split([shape[0] for shape in shapes])
        for index, (weight, part) in enumerate(zip(weights, parts, strict=True)):
            if part.numel():
                axis, units = (1 if weight.cut == "row" else 0), self._units(weight, form)
                reused = self._reuse(key, index, units, axis, part)
                for rest in without(units, reused):
                    target = part.narrow(axis, rest.start - units.start, rest.size)
                    name = weight.tensor(layer, piece=piece)
                    group = form.group if form is not None and weight.cut == "row" else 1
                    raw = self.regions.read(weight, name, rest, layer, group)
                    is_transposed = weight.transposed and form is None
                    self._copy(weight, raw.t() if is_transposed else raw, target, layer)
        self.regions.forget()
        return out

    def _reuse(
        self, key: Key, index: int, units: Range, axis: int, out: torch.Tensor
    ) -> Range | None:
        """Copy to `out` the units that the previous slice has, and return them."""
        overlap = self.weights.reusable.overlap(key, index, units, axis)
        if overlap is None:
            return None
        reused, values = overlap
        out.narrow(axis, reused.start - units.start, reused.size).copy_(values)
        return reused

    def _bias(
        self, weights: list[Weight], layer: int | None, piece: int | None = None
    ) -> torch.Tensor | None:
        """The biases of column-parallel weights, end to end, in the dtype computed in; or None."""
        if not weights[0].bias:
            return None
        ranges = [self.regions.units(weight) for weight in weights]
        sizes = [units.size for units in ranges]
        out = self._empty(self.dtype, sum(sizes))
        for weight, units, part in zip(weights, ranges, out.split(sizes), strict=True):
            if part.numel():
                raw = self.regions.read(weight, weight.tensor(layer, "bias", piece), units)
                self._copy(weight, raw, part, layer)
        self.regions.forget()
        return out

    def _copy(
        self, weight: Weight, raw: torch.Tensor, out: torch.Tensor, layer: int | None
    ) -> None:
        self.regions.copy(weight, raw, out, layer)
        self.weights.fetched_bytes += out.nbytes

    def _empty(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)
